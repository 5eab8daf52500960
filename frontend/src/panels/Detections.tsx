import { chosenBox, highlighted, hoveredBox, shapes, words } from "../state/store";
import { colourOf } from "../viewer/colours";

/** The boxes as a list: for screen readers, and to find one of many. */
export function Detections() {
  const t = words.value;
  const sorted = [...shapes.value].sort((a, b) => (b.score ?? 1) - (a.score ?? 1));
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
                onClick={() => (chosenBox.value = shape.id)}
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
                  <b>
                    <span class="visually-hidden">{t.confidence} </span>
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
