import type { ReadonlySignal } from "@preact/signals";

import { chosenBox, highlighted, hoveredBox, shapes, words } from "../state/store";
import { colourOf } from "../viewer/colours";
import type { Shape } from "../viewer/viewer";

interface Props {
  /** Boxes of what is on the stage; those of the selected picture, if nothing is said. */
  of?: ReadonlySignal<readonly Shape[]>;
  /** A row was clicked, and its box chosen. */
  onJump?(shape: Shape): void;
}

/** The boxes as a list: for screen readers, and to find one of many. */
export function Detections({ of = shapes, onJump }: Props) {
  const t = words.value;
  const sorted = [...of.value].sort((a, b) => (b.score ?? 1) - (a.score ?? 1));
  return (
    <section class="panel grow" aria-labelledby="detections-title">
      <div class="panel-head">
        <h2 id="detections-title">{t.detections}</h2>
        <span class="muted small">{sorted.length || ""}</span>
      </div>
      <ul class="detections">
        {sorted.map((shape) => {
          const [x1, y1, x2, y2] = shape.xyxy.map(Math.round) as [number, number, number, number];
          return (
            <li key={shape.id} data-dim={highlighted.value !== null && highlighted.value !== shape.name}>
              <button
                aria-current={chosenBox.value === shape.id ? "true" : undefined}
                data-hovered={hoveredBox.value === shape.id}
                onMouseEnter={() => (hoveredBox.value = shape.id)}
                onMouseLeave={() => (hoveredBox.value = null)}
                onFocus={() => (hoveredBox.value = shape.id)}
                onBlur={() => (hoveredBox.value = null)}
                onClick={() => {
                  chosenBox.value = shape.id;
                  onJump?.(shape);
                }}
              >
                <span class="swatch" style={{ background: colourOf(shape.classId) }} />
                <span class="detection-name">{shape.name}</span>
                <span class="detection-place">
                  {x2 - x1} × {y2 - y1}
                </span>
                <span class="visually-hidden">{t.placedAt(x1, y1)}</span>
                {shape.score === null ? (
                  <b title={t.edited} aria-label={t.edited} role="img">
                    ✓
                  </b>
                ) : (
                  <b title={shape.unsure ? t.unsure : undefined} data-unsure={shape.unsure}>
                    <span class="visually-hidden">
                      {shape.unsure && `${t.unsure}, `}
                      {t.confidence}{" "}
                    </span>
                    {shape.score.toFixed(2)}
                  </b>
                )}
              </button>
            </li>
          );
        })}
      </ul>
    </section>
  );
}
