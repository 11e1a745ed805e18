import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { decodeContent, isKnownCoding } from "../lib/content_coding.ts";

const TEXT = "site_checker ".repeat(10_000);
const MIB = 1024 * 1024;

/** The bytes in pieces, all in one buffer, as a reader has them that uses it again. */
async function* inPieces(bytes: Uint8Array, length: number): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(length);
  for (let at = 0; at < bytes.length; at += length) {
    const piece = bytes.subarray(at, at + length);
    buffer.set(piece);
    yield buffer.subarray(0, piece.length);
    buffer.fill(0);
    await Promise.resolve();
  }
}

async function decode(bytes: Uint8Array, coding: string): Promise<string> {
  const pieces: Uint8Array[] = [];
  for await (const piece of decodeContent(inPieces(bytes, 100), coding)) pieces.push(piece.slice());
  return Buffer.concat(pieces).toString();
}

const CODINGS = [
  { coding: "gzip", pack: (text: string) => gzipSync(text) },
  { coding: "x-gzip", pack: (text: string) => gzipSync(text) },
  { coding: "GZIP", pack: (text: string) => gzipSync(text) },
  { coding: "br", pack: (text: string) => brotliCompressSync(text) },
  { coding: "Br", pack: (text: string) => brotliCompressSync(text) },
];

Deno.test.each(CODINGS)("decodeContent() decodes $coding, however it comes in pieces", async ({ coding, pack }) => {
  assert.ok(isKnownCoding(coding));
  assert.equal(await decode(pack(TEXT), coding), TEXT);
  assert.equal(await decode(pack(""), coding), "");
});

Deno.test.each(CODINGS)("decodeContent() refuses $coding that is cut, and what is none", async ({ coding, pack }) => {
  const packed = pack(TEXT);
  for (const length of [1, packed.length >> 1, packed.length - 1]) {
    await assert.rejects(decode(packed.subarray(0, length), coding), `${length} bytes`);
  }
  await assert.rejects(decode(Buffer.from("It works. ".repeat(100)), coding));
});

Deno.test("isKnownCoding() knows no other", () => {
  for (const coding of ["", "identity", "deflate", "zstd", "gzip, br", "toString", "__proto__"]) {
    assert.equal(isKnownCoding(coding), false, coding);
  }
});

Deno.test.each(CODINGS)("decodeContent() of $coding throws what its pieces throw", async ({ coding, pack }) => {
  const error = new Error("no more");
  async function* pieces(): AsyncGenerator<Uint8Array> {
    yield pack(TEXT).subarray(0, 50);
    await Promise.resolve();
    throw error;
  }
  await assert.rejects(async () => {
    for await (const _ of decodeContent(pieces(), coding));
  }, error);
});

Deno.test.each(CODINGS)("decodeContent() of $coding makes of a bomb no more than is asked for", async ({ coding }) => {
  const params = { [constants.BROTLI_PARAM_QUALITY]: 1 };
  const plain = Buffer.alloc(64 * MIB);
  const bomb = coding.toLowerCase() === "br" ? brotliCompressSync(plain, { params }) : gzipSync(plain);
  let bytes = 0;
  for await (const piece of decodeContent(inPieces(bomb, 64 * 1024), coding)) {
    assert.ok(piece.length <= MIB, `${piece.length} bytes`);
    bytes += piece.length;
    if (bytes > 2 * MIB) break;
  }
});

Deno.test.each(CODINGS)("decodeContent() of $coding reads no more than is asked for, and ends its pieces", async (
  { coding, pack },
) => {
  const packed = pack(Array.from({ length: 20_000 }, () => crypto.randomUUID()).join());
  let read = 0;
  let isEnded = false;
  async function* pieces(): AsyncGenerator<Uint8Array> {
    try {
      for await (const piece of inPieces(packed, 10_000)) {
        read += piece.length;
        yield piece;
      }
    } finally {
      isEnded = true;
    }
  }
  for await (const _ of decodeContent(pieces(), coding)) break;
  await new Promise((resolve) => setTimeout(resolve));
  assert.ok(read < packed.length / 2, `${read} of ${packed.length} bytes`);
  assert.ok(isEnded);
});
