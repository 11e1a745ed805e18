/** What a process has used. */
export interface Usage {
  /** CPU time of all its threads, in s. */
  readonly cpuSeconds: number;
  /** Resident size, in MB. */
  readonly megabytes: number;
  /** Greatest resident size, in MB. */
  readonly peakMegabytes: number;
}

/** Clock ticks a second of `/proc/PID/stat` (Linux, `sysconf(_SC_CLK_TCK)`). */
const TICKS = 100;

/** Usage of a process of Linux; undefined once it has ended. */
export async function processUsage(pid: number): Promise<Usage | undefined> {
  try {
    const stat = await Deno.readTextFile(`/proc/${pid}/stat`);
    const status = await Deno.readTextFile(`/proc/${pid}/status`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const [resident, peak] = ["VmRSS", "VmHWM"].map((name) =>
      Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]) / 1024
    );
    // A process that has ended and was not waited for has no memory.
    if (resident === undefined || peak === undefined || Number.isNaN(peak)) return undefined;
    return {
      cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS,
      megabytes: resident,
      peakMegabytes: peak,
    };
  } catch {
    return undefined;
  }
}
