import { useState } from "preact/hooks";

import type { Stream } from "../api/types";
import { Confirm } from "../parts/Confirm";
import { Icon } from "../parts/Icon";
import { addStream, removeStream, streams, watch, watched } from "../state/cameras";
import { textOf } from "../state/notices";
import { mayChange, words } from "../state/store";

/** The server's cameras and how they are, the browser's own, and a form for another one. */
export function CameraList() {
  const t = words.value;
  const own = watched.value?.kind === "own";
  return (
    <>
      <section class="panel" aria-labelledby="own-title">
        <h2 id="own-title">{t.ownCamera}</h2>
        <p class="muted small">{t.ownCameraHow}</p>
        <button class={own ? "button" : "button primary"} id="own-camera" onClick={() => watch(own ? null : { kind: "own" })}>
          <Icon name="camera" />
          {own ? t.ownCameraStop : t.ownCameraStart}
        </button>
      </section>
      <section class="panel" aria-labelledby="cameras-title">
        <h2 id="cameras-title">{t.serverCameras}</h2>
        {streams.value?.length === 0 && <p class="muted">{t.noCameras}</p>}
        <ul class="camera-list">
          {streams.value?.map((stream) => (
            <Row key={stream.name} stream={stream} />
          ))}
        </ul>
      </section>
      {mayChange.value && <AddCamera />}
    </>
  );
}

function Row({ stream }: { stream: Stream }) {
  const t = words.value;
  const now = watched.value;
  const chosen = now?.kind === "server" && now.name === stream.name;
  const states: Record<string, string> = { running: t.cameraRuns, connecting: t.cameraConnects, silent: t.cameraSilent };
  return (
    <li class="camera" data-state={stream.state}>
      <button class="camera-main" aria-current={chosen ? "true" : undefined} onClick={() => watch({ kind: "server", name: stream.name })}>
        <span class="camera-name">
          <span class="dot" aria-hidden="true" />
          {stream.name}
          <span class="muted small">{states[stream.state] ?? stream.state}</span>
        </span>
        <span class="muted small">{stream.source}</span>
        {stream.state === "running" && (
          <span class="muted small">
            {t.perSecond(stream.per_second)} · {stream.milliseconds === null ? t.unknown : t.milliseconds(stream.milliseconds)} ·{" "}
            {t.skippedFrames(stream.skipped)}
          </span>
        )}
      </button>
      {stream.error && <p class="bad small">{stream.error}</p>}
      {chosen && mayChange.value && (
        <Confirm label={t.removeNamed(stream.name)} question={t.removeCameraSure(stream.name)} does={t.remove} onConfirm={() => void removeStream(stream.name)} />
      )}
    </li>
  );
}

function AddCamera() {
  const t = words.value;
  const [problem, setProblem] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (form: HTMLFormElement) => {
    const given = new FormData(form);
    setBusy(true);
    setProblem(null);
    try {
      await addStream(String(given.get("name")).trim(), String(given.get("source")).trim());
      form.reset();
    } catch (error) {
      setProblem(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <form
      class="panel"
      aria-labelledby="add-camera-title"
      onSubmit={(event) => {
        event.preventDefault();
        void submit(event.currentTarget);
      }}
    >
      <h2 id="add-camera-title">{t.addCamera}</h2>
      <label class="field">
        <span>{t.cameraName}</span>
        <input class="input" name="name" required maxLength={64} autocomplete="off" spellcheck={false} />
      </label>
      <label class="field">
        <span>{t.cameraSource}</span>
        <input class="input" name="source" required maxLength={1000} placeholder="rtsp://192.168.1.20/live" autocomplete="off" spellcheck={false} />
      </label>
      <p class="muted small">{t.cameraSourceHow}</p>
      {problem !== null && (
        <p class="bad small" role="alert">
          {textOf(problem)}
        </p>
      )}
      <button class="button" disabled={busy}>
        {t.addCamera}
      </button>
    </form>
  );
}
