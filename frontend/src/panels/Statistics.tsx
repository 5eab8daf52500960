import { chosenBox, counts, highlighted, hoveredBox, selected, shapes, words } from "../state/store";
import { colourOf } from "../viewer/colours";
import { label } from "../viewer/draw";

/** How many objects of each class are shown; a click shows one class and dims the rest. */
export function Statistics() {
  const t = words.value;
  const found = selected.value?.found;
  const pointed = shapes.value.find((shape) => shape.id === (hoveredBox.value ?? chosenBox.value));
  const ids = new Map(shapes.value.map((shape) => [shape.name, shape.classId]));
  return (
    <section class="statistics" aria-label={t.statistics}>
      {counts.value.length === 0 && found && <p class="muted">{t.nothingFound}</p>}
      <div class="chips" role="group" aria-label={t.statistics} aria-live="polite">
        {counts.value.map(([name, number]) => (
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
        </span>
      )}
    </section>
  );
}
