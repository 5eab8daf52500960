import { Stage } from "../parts/Stage";
import * as cameras from "../state/cameras";
import { chosenBox, highlighted, hoveredBox, words } from "../state/store";

/** The newest frame with its boxes, lines and zones. */
export function CameraStage() {
  const t = words.value;
  const frame = cameras.liveFrame.value;
  const problem = cameras.liveProblem.value;
  const watched = cameras.watched.value;
  const stream = watched?.kind === "server" ? cameras.streams.value?.find(({ name }) => name === watched.name) : undefined;
  const silent = stream && stream.state !== "running" ? (stream.error ?? t.cameraWaits) : null;
  return (
    <>
      {frame && (problem || silent) && (
        <p class="banner" role="alert">
          {problem ? t[problem] : silent}
        </p>
      )}
      <Stage
        picture={frame?.levels ?? null}
        stay
        shapes={cameras.liveShapes.value}
        marks={cameras.marks.value}
        pen={cameras.pen.value}
        highlighted={highlighted.value}
        hovered={hoveredBox.value}
        chosen={chosenBox.value}
        onHover={(id) => (hoveredBox.value = id)}
        onChoose={(id) => (chosenBox.value = id)}
        onPen={cameras.setPoint}
        tools={
          <>
            {frame?.found.review && <span class="badge">{t.unsureFrame}</span>}
            <button class="tool wide" disabled={!frame} title={t.reviewFrameTitle} onClick={() => void cameras.reviewFrame()}>
              {t.reviewFrame}
            </button>
          </>
        }
      >
        <div class="empty">
          {problem || silent ? (
            <p class="bad" role="alert">
              {problem ? t[problem] : silent}
            </p>
          ) : watched ? (
            <p role="status">{t.cameraOpens}</p>
          ) : (
            <>
              <h2>{t.cameraEmptyTitle}</h2>
              <p>{t.cameraEmpty}</p>
            </>
          )}
        </div>
      </Stage>
    </>
  );
}
