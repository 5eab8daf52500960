// Signals that this browser remembers; where it may not store anything, they live as long as the page.

import { effect, signal, type Signal } from "@preact/signals";

const PREFIX = "manyeyes.";

/** A signal under a name; what is stored there is believed only if `fits` says so. */
export function kept<T>(name: string, otherwise: T, fits: (value: unknown) => value is T): Signal<T> {
  const value = signal<T>(read(name, otherwise, fits));
  effect(() => {
    const text = JSON.stringify(value.value);
    try {
      localStorage.setItem(PREFIX + name, text);
    } catch {
      // Storage is off or full: it is remembered for this visit.
    }
  });
  return value;
}

function read<T>(name: string, otherwise: T, fits: (value: unknown) => value is T): T {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(PREFIX + name) ?? "null");
    return fits(value) ? value : otherwise;
  } catch {
    return otherwise;
  }
}

export function oneOf<T extends string>(...values: readonly T[]): (value: unknown) => value is T {
  return (value): value is T => values.includes(value as T);
}

export function between(low: number, high: number): (value: unknown) => value is number {
  return (value): value is number => typeof value === "number" && value >= low && value <= high;
}

export function isBoolean(value: unknown): value is boolean {
  return typeof value === "boolean";
}
