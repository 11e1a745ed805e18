/** What a process has used. */
export interface Usage {
  /** CPU time of all its threads, in s. */
  readonly cpuSeconds: number;
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
    const peak = /VmHWM:\s+(?<kilobytes>\d+)/.exec(status)?.groups?.["kilobytes"];
    if (peak === undefined) return undefined;
    return { cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS, peakMegabytes: Number(peak) / 1024 };
  } catch {
    return undefined;
  }
}
