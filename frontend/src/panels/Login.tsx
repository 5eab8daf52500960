import { useState } from "preact/hooks";

import { textOf } from "../state/notices";
import { logIn } from "../state/server";
import { words } from "../state/store";

/** The password, where the server needs one. */
export function Login() {
  const t = words.value;
  const [problem, setProblem] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (form: HTMLFormElement) => {
    setBusy(true);
    setProblem(null);
    try {
      await logIn(String(new FormData(form).get("password")));
    } catch (error) {
      setProblem(error);
      form.querySelector("input")?.select();
    } finally {
      setBusy(false);
    }
  };
  return (
    <form
      class="card"
      onSubmit={(event) => {
        event.preventDefault();
        void submit(event.currentTarget);
      }}
    >
      <h1>{t.passwordTitle}</h1>
      <label class="field">
        <span>{t.password}</span>
        <input class="input" name="password" type="password" autocomplete="current-password" required autofocus />
      </label>
      {problem !== null && (
        <p class="bad" role="alert">
          {textOf(problem)}
        </p>
      )}
      <button class="button primary" disabled={busy}>
        {t.logIn}
      </button>
    </form>
  );
}
