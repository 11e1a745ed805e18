import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { ConfigError } from "./error.ts";
import { readTextFile } from "./text_file.ts";

/** Certificates in a file. */
export interface CertificateFile {
  /** Where they stand. */
  readonly path: string;
  /** Text of the file. */
  readonly pem: string;
  /** The first: one's own, where others follow as its chain. */
  readonly first: X509Certificate;
}

/** A private key in a file. */
export interface KeyFile {
  /** Where it stands. */
  readonly path: string;
  /** Text of the file. */
  readonly pem: string;
  /** The key. */
  readonly key: KeyObject;
}

const CERTIFICATE_REGEXP = /-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?(?:-----END [A-Z0-9 ]+-----|$)/gs;

/**
 * Reads certificates in PEM.
 *
 * @param label What they are for, for errors: "ssl_cafile of [kafka] (config.ini:7):".
 * @throws {ConfigError} when there are none, or one of them can't be read.
 */
export async function readCertificateFile(path: string, label: string): Promise<CertificateFile> {
  const pem = await readTextFile(path, label);
  const texts = pem.match(CERTIFICATE_REGEXP) ?? [];
  const [first] = texts.map((text, index) => {
    try {
      return new X509Certificate(text);
    } catch {
      const which = texts.length === 1 ? "" : ` as number ${index + 1} of ${texts.length}`;
      throw new ConfigError(`Cannot read ${label} '${path}': expected a certificate in PEM, got a broken one${which}`);
    }
  });
  if (first === undefined) {
    const got = pem.includes("PRIVATE KEY") ? ", got a private key" : "";
    throw new ConfigError(`Cannot read ${label} '${path}': expected a certificate in PEM${got}`);
  }
  return { path, pem, first };
}

/**
 * Reads a private key in PEM that has no passphrase.
 *
 * @param label What it is for, for errors: "ssl_keyfile of [kafka] (config.ini:9):".
 * @throws {ConfigError} when there is none, or it is encrypted.
 */
export async function readKeyFile(path: string, label: string): Promise<KeyFile> {
  const pem = await readTextFile(path, label);
  try {
    return { path, pem, key: createPrivateKey(pem) };
  } catch {
    const got = pem.includes("ENCRYPTED")
      ? ", got an encrypted one: only keys without a passphrase are read"
      : pem.includes("PRIVATE KEY")
      ? ", got a broken one"
      : pem.includes("CERTIFICATE")
      ? ", got a certificate"
      : "";
    throw new ConfigError(`Cannot read ${label} '${path}': expected a private key in PEM${got}`);
  }
}

/** Whether the key is the certificate's own. */
export function keyFits({ key }: KeyFile, { first }: CertificateFile): boolean {
  return first.checkPrivateKey(key);
}
