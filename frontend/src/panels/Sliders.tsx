import { Icon } from "../parts/Icon";
import { Slider } from "../parts/Slider";
import { LEAST_SCORE, MOST_SCORE, classScores, classesHere, maxIou, minScore, words } from "../state/store";

interface Props {
  /** Those that can have a slider of their own; the selected picture's, if nothing is said. */
  classes?: readonly string[];
  /** Whether the overlap can be changed for what is shown. */
  overlap?: boolean;
}

/** How sure the model must be, for all classes and for each, and how far boxes of one class may overlap. */
export function Sliders({ classes = classesHere.value, overlap = true }: Props) {
  const t = words.value;
  const reset = (name: string) => {
    const { [name]: _, ...rest } = classScores.value;
    classScores.value = rest;
  };
  return (
    <section class="panel" aria-labelledby="sliders-title">
      <h2 id="sliders-title">{t.settings}</h2>
      <Slider label={t.confidence} value={minScore.value} min={LEAST_SCORE} max={MOST_SCORE} onChange={(value) => (minScore.value = value)} />
      {classes.length > 0 && (
        <details>
          <summary>{t.perClass}</summary>
          {classes.map((name) => {
            const own = classScores.value[name];
            return (
              <div key={name} class="class-score" data-own={own !== undefined}>
                <span class="class-score-name" aria-hidden="true">
                  {name}
                </span>
                <Slider
                  quiet
                  label={t.confidenceOf(name)}
                  value={own ?? minScore.value}
                  min={LEAST_SCORE}
                  max={MOST_SCORE}
                  onChange={(value) => (classScores.value = { ...classScores.value, [name]: value })}
                />
                <output aria-hidden="true">{(own ?? minScore.value).toFixed(2)}</output>
                <button class="tool small" disabled={own === undefined} title={t.resetClass(name)} aria-label={t.resetClass(name)} onClick={() => reset(name)}>
                  <Icon name="close" />
                </button>
              </div>
            );
          })}
        </details>
      )}
      {overlap && (
        <Slider label={t.nms} value={maxIou.value} min={0.1} max={0.95} step={0.05} onChange={(value) => (maxIou.value = value)} />
      )}
    </section>
  );
}
