// The library beneath asks for this one.
import "reflect-metadata";
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  type X509Certificate,
  X509CertificateGenerator,
} from "@peculiar/x509";

/** A certificate and its private key, both in PEM (the key in PKCS #8). */
export interface CertificateFiles {
  /** Certificate. */
  readonly certificate: string;
  /** Private key. */
  readonly key: string;
}

/** Options of {@linkcode Authority.issue}. */
export interface IssueOptions {
  /** Subject's common name. */
  readonly commonName: string;
  /** Host names and IP addresses that it is for. */
  readonly names?: readonly string[];
  /** Start. Default: an hour ago. */
  readonly notBefore?: Date;
  /** End. Default: in 30 days. */
  readonly notAfter?: Date;
}

const HOUR_MS = 60 * 60 * 1000;
const MONTH_MS = 30 * 24 * HOUR_MS;
const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const IP_REGEXP = /^(?:\d+(?:\.\d+){3}|[\da-f:]*:[\da-f:.]*)$/i;

/** An authority that issues certificates, for servers that run here: in demo, tests and benches. */
export class Authority {
  /** Its own certificate, in PEM. */
  readonly certificate: string;
  readonly #issuer: X509Certificate;
  readonly #keys: CryptoKeyPair;

  private constructor(issuer: X509Certificate, keys: CryptoKeyPair) {
    this.#issuer = issuer;
    this.#keys = keys;
    this.certificate = issuer.toString("pem") + "\n";
  }

  /** Makes an authority with a new key. */
  static async create(name: string): Promise<Authority> {
    const keys = await generateKeys();
    const issuer = await X509CertificateGenerator.createSelfSigned({
      name: `CN=${name}`,
      keys,
      signingAlgorithm: ALGORITHM,
      notBefore: new Date(Date.now() - MONTH_MS * 24),
      notAfter: new Date(Date.now() + MONTH_MS * 24),
      extensions: [
        new BasicConstraintsExtension(true, undefined, true),
        new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
        await SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    return new Authority(issuer, keys);
  }

  /** Issues a certificate that serves as a server's and as a client's. */
  async issue({ commonName, names = [], notBefore, notAfter }: IssueOptions): Promise<CertificateFiles> {
    const keys = await generateKeys();
    const certificate = await X509CertificateGenerator.create({
      subject: `CN=${commonName}`,
      issuer: this.#issuer.subject,
      publicKey: keys.publicKey,
      signingKey: this.#keys.privateKey,
      signingAlgorithm: ALGORITHM,
      notBefore: notBefore ?? new Date(Date.now() - HOUR_MS),
      notAfter: notAfter ?? new Date(Date.now() + MONTH_MS),
      extensions: [
        new BasicConstraintsExtension(false, undefined, true),
        new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
        await SubjectKeyIdentifierExtension.create(keys.publicKey),
        await AuthorityKeyIdentifierExtension.create(this.#issuer),
        new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]),
        ...(names.length === 0 ? [] : [
          new SubjectAlternativeNameExtension(
            names.map((value) => ({ type: IP_REGEXP.test(value) ? "ip" as const : "dns" as const, value })),
          ),
        ]),
      ],
    });
    const key = await crypto.subtle.exportKey("pkcs8", keys.privateKey);
    return { certificate: certificate.toString("pem") + "\n", key: PemConverter.encode(key, "PRIVATE KEY") + "\n" };
  }
}

/** Makes an authority with a new key. */
export function createAuthority(name: string): Promise<Authority> {
  return Authority.create(name);
}

function generateKeys(): Promise<CryptoKeyPair> {
  return crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]) as Promise<CryptoKeyPair>;
}
