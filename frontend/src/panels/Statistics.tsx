import type { ReadonlySignal } from "@preact/signals";

import type { Found } from "../api/types";
import { chosenBox, countsOf, highlighted, hoveredBox, selected, shapes, words } from "../state/store";
import { colourOf } from "../viewer/colours";
import { label } from "../viewer/draw";
import type { Shape } from "../viewer/viewer";

interface Props {
  /** Boxes of what is on the stage, and the answer they came with; those of the selected picture, if nothing is said. */
  of?: ReadonlySignal<readonly Shape[]>;
  found?: Found | null;
  /** Beside the size of the picture. */
  facts?: string;
}

/** How many objects of each class are shown; a click shows one class and dims the rest. */
export function Statistics({ of = shapes, found = selected.value?.found ?? null, facts }: Props) {
  const t = words.value;
  const counts = countsOf(of.value);
  const pointed = of.value.find((shape) => shape.id === (hoveredBox.value ?? chosenBox.value));
  const ids = new Map(of.value.map((shape) => [shape.name, shape.classId]));
  return (
    <section class="statistics" aria-label={t.statistics}>
      {counts.length === 0 && found && <p class="muted">{t.nothingFound}</p>}
      <div class="chips" role="group" aria-label={t.statistics} aria-live="polite">
        {counts.map(([name, number]) => (
          <button
            key={name}
            class="chip"
            aria-label={t.classShown(name, number)}
            aria-pressed={highlighted.value === name}
            onClick={() => (highlighted.value = highlighted.value === name ? null : name)}
          >
            <span class="swatch" style={{ background: colourOf(ids.get(name) ?? 0) }} />
            {name} <b>{number}</b>
          </button>
        ))}
      </div>
      {found && (
        <span class="muted small facts">
          {pointed ? <b id="pointed">{label(pointed)}</b> : `${found.width} × ${found.height}`} · {t.milliseconds(found.milliseconds)}
          {facts && ` · ${facts}`}
        </span>
      )}
    </section>
  );
}
