import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { words } from "../state/store";

interface Props {
  /** On the button that asks. */
  label: string;
  /** What is asked before anything happens. */
  question: string;
  /** On the button that does it. */
  does?: string;
  disabled?: boolean;
  onConfirm(): void;
}

/** A button for what cannot be taken back: it asks in its own place first. */
export function Confirm({ label, question, does, disabled = false, onConfirm }: Props) {
  const t = words.value;
  const [asking, setAsking] = useState(false);
  const keep = useRef<HTMLButtonElement>(null);
  const first = useRef<HTMLButtonElement>(null);
  const wasAsking = useRef(false);
  useLayoutEffect(() => {
    if (asking) keep.current?.focus();
    else if (wasAsking.current) first.current?.focus();
    wasAsking.current = asking;
  }, [asking]);
  if (!asking) {
    return (
      <button class="button" ref={first} disabled={disabled} onClick={() => setAsking(true)}>
        {label}
      </button>
    );
  }
  return (
    <div
      class="confirm"
      role="group"
      aria-label={question}
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        setAsking(false);
      }}
    >
      <p role="alert">{question}</p>
      <div class="buttons">
        <button
          class="button danger"
          onClick={() => {
            setAsking(false);
            onConfirm();
          }}
        >
          {does ?? t.delete}
        </button>
        <button class="button" ref={keep} onClick={() => setAsking(false)}>
          {t.keep}
        </button>
      </div>
    </div>
  );
}
