// Times, lengths and sizes as people of the language write them.

import type { Language } from "../state/store";
import type { Dictionary } from "./en";

export const LOCALES: Record<Language, string> = { en: "en-GB", zh: "zh-CN" };
const DAY = 86_400_000;

/** A time in seconds since 1970: today's without its day. */
export function when(seconds: number, language: Language): string {
  const time = new Date(1000 * seconds);
  const today = Date.now() - time.getTime() < DAY && time.getDate() === new Date().getDate();
  const day = today ? {} : ({ day: "numeric", month: "short" } as const);
  return time.toLocaleString(LOCALES[language], { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Bytes in decimal units. */
export function size(bytes: number, language: Language): string {
  const step = bytes < 1000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), 4);
  const value = bytes / 1000 ** step;
  return `${value.toLocaleString(LOCALES[language], { maximumFractionDigits: value < 10 && step ? 1 : 0 })} ${["B", "kB", "MB", "GB", "TB"][step]}`;
}

export function number(value: number, language: Language): string {
  return value.toLocaleString(LOCALES[language]);
}

/** A length of time, to the two largest units. */
export function length(seconds: number, language: Language): string {
  const [s, m, h] = language === "zh" ? ["秒", "分", "小时"] : ["s", "min", "h"];
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) return `${whole} ${s}`;
  const [large, small, most, least] = whole < 3600 ? ([60, 1, m, s] as const) : ([3600, 60, h, m] as const);
  const rest = Math.floor((whole % large) / small);
  return `${Math.floor(whole / large)} ${most}${rest ? ` ${rest} ${least}` : ""}`;
}

/** Where a picture came from, as people call it; the server's word is "request", "job ID", "live NUMBER" or "stream NAME". */
export function sourceName(source: string, t: Dictionary): string {
  const [kind, name = ""] = source.split(/ (.*)/s);
  switch (kind) {
    case "request":
      return t.sourceUpload;
    case "job":
      return t.sourceArchive(name.slice(0, 6));
    case "live":
      return t.sourceBrowser(name);
    default:
      return name || source;
  }
}
