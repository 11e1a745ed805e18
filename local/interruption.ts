const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** The wish of the user that we end. */
export interface Interruption extends Disposable {
  /** Aborted by the first SIGINT, SIGTERM or SIGHUP; the second ends the process at once. */
  readonly signal: AbortSignal;
  /** Resolves when {@linkcode signal} is aborted. */
  readonly requested: Promise<void>;
}

/** Listens to the signals by which users and supervisors end a program. */
export function listenForInterruption(): Interruption {
  const controller = new AbortController();
  const { promise, resolve } = Promise.withResolvers<void>();
  // Without a listener of ours, a signal does what it does by default.
  const stop = () => {
    for (const name of SIGNALS) Deno.removeSignalListener(name, interrupt);
  };
  const interrupt = () => {
    stop();
    controller.abort();
    resolve();
  };
  for (const name of SIGNALS) Deno.addSignalListener(name, interrupt);
  return { signal: controller.signal, requested: promise, [Symbol.dispose]: stop };
}
