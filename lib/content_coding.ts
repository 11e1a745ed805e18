import { Readable } from "node:stream";
import { type BrotliDecompress, createBrotliDecompress, createGunzip, type Gunzip } from "node:zlib";

/** Codings of a body (RFC 9110, 8.4.1) that are decoded, by their names in lower case. */
const DECODERS: Readonly<Record<string, () => Gunzip | BrotliDecompress>> = {
  gzip: createGunzip,
  "x-gzip": createGunzip,
  br: createBrotliDecompress,
};

/** Whether {@linkcode decodeContent} knows the value of a header `content-encoding`. */
export function isKnownCoding(coding: string): boolean {
  return Object.hasOwn(DECODERS, coding.toLowerCase());
}

/**
 * Decodes a body piece by piece: a few bytes may stand for gigabytes, of which no more are made than are asked for.
 *
 * @param coding One that is known ({@linkcode isKnownCoding}).
 * @throws What the pieces throw, and an error where they are not what the coding says, or end too early.
 */
export async function* decodeContent(
  pieces: AsyncIterable<Uint8Array>,
  coding: string,
): AsyncGenerator<Uint8Array<ArrayBuffer>, void> {
  const name = coding.toLowerCase();
  const decoder = DECODERS[name]!();
  // The runtime's brotli takes a body that is cut for one that is not; but what stands behind the end it leaves.
  const mark = name === "br" ? new Uint8Array(1) : null;
  let encodedBytes = 0;
  async function* encoded(): AsyncGenerator<Uint8Array> {
    for await (const piece of pieces) {
      encodedBytes += piece.length;
      yield new Uint8Array(piece);
    }
    if (mark !== null) yield mark;
  }
  const source = Readable.from(encoded(), { objectMode: false });
  source.on("error", (error) => decoder.destroy(error));
  try {
    for await (const piece of source.pipe(decoder)) {
      // It is a Buffer, of which slice() makes no copy.
      yield new Uint8Array(piece.buffer, piece.byteOffset, piece.length);
    }
    if (mark !== null && decoder.bytesWritten > encodedBytes) throw new TypeError("unexpected end of file");
  } finally {
    source.destroy();
    decoder.destroy();
  }
}
