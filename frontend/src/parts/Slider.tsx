interface Props {
  label: string;
  value: number;
  min: number;
  max: number;
  step?: number;
  /** Read out instead of the number, and shown beside the name. */
  text?: string;
  /** Keep the name for screen readers alone. */
  quiet?: boolean;
  onChange(value: number): void;
}

/** A range with its name and value; acts while it is dragged. */
export function Slider({ label, value, min, max, step = 0.01, text = value.toFixed(2), quiet = false, onChange }: Props) {
  return (
    <label class="slider">
      <span class={quiet ? "visually-hidden" : "slider-head"}>
        <span>{label}</span>
        <output>{text}</output>
      </span>
      <input
        type="range"
        min={min}
        max={max}
        step={step}
        value={value}
        aria-label={label}
        aria-valuetext={text}
        onInput={(event) => onChange(event.currentTarget.valueAsNumber)}
      />
    </label>
  );
}
