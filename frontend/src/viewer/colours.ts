// Colours of classes: told apart on photographs, and each with ink that can be read on it.

const COLOURS = [
  "#ffb000", "#4cc3ff", "#ff6f91", "#7ee081", "#c79bff", "#ff8a3d", "#35e0d0", "#f2f261",
  "#ff9de2", "#9fb8ff", "#d6a06c", "#b5ee4d", "#ff5d5d", "#5de0a5", "#e0c2ff", "#c8d3de",
] as const;

/** Ink on any of them. */
export const INK = "#10151b";

export function colourOf(classId: number): string {
  // Beyond the list hues are a golden angle apart: neighbours differ, and none comes twice.
  return COLOURS[classId] ?? `hsl(${(classId * 137.508) % 360} 85% 68%)`;
}
