import { useEffect, useRef, useState } from "preact/hooks";

import { Icon } from "../parts/Icon";
import { textOf } from "../state/notices";
import { clear, remove, retry, retryAll, type Item } from "../state/queue";
import { select } from "../state/select";
import { items, passes, selectedId, words } from "../state/store";

const ROW_REM = 3;
/** Rows kept above and below those in sight. */
const BEYOND = 6;

/** What was added, one row each; only rows in sight are made, so that thousands cost nothing. */
export function Queue() {
  const t = words.value;
  const all = items.value;
  const done = all.filter((item) => item.state === "done").length;
  const failed = all.filter((item) => item.state === "failed").length;
  const ended = done + failed;
  return (
    <section class="panel grow" aria-labelledby="queue-title">
      <div class="panel-head">
        <h2 id="queue-title">{t.queue}</h2>
        {failed > 0 && (
          <button class="link" onClick={retryAll}>
            {t.retryAll}
          </button>
        )}
        {ended > 0 && (
          <button class="link" onClick={clear}>
            {t.clear}
          </button>
        )}
      </div>
      {all.length === 0 ? (
        <p class="muted">{t.queueEmpty}</p>
      ) : (
        <>
          <progress aria-label={t.queue} max={all.length} value={ended} />
          <p class="muted small" role="status" id="queue-progress">
            {t.progressOf(done, all.length)}
            {failed > 0 && <span class="bad"> · {t.failedCount(failed)}</span>}
          </p>
          <Rows all={all} />
        </>
      )}
    </section>
  );
}

function Rows({ all }: { all: readonly Item[] }) {
  const list = useRef<HTMLUListElement>(null);
  const [sight, setSight] = useState({ from: 0, rows: 20, row: 16 * ROW_REM });
  const measure = () => {
    if (!list.current) return; // told of what is gone already
    const { scrollTop, clientHeight } = list.current;
    const row = ROW_REM * parseFloat(getComputedStyle(document.documentElement).fontSize);
    const from = Math.max(Math.floor(scrollTop / row) - BEYOND, 0);
    const rows = Math.ceil(clientHeight / row) + 2 * BEYOND;
    setSight((last) => (last.from === from && last.rows === rows && last.row === row ? last : { from, rows, row }));
  };
  // Told after the layout of a frame: to ask for sizes in between would lay the page out twice.
  useEffect(() => {
    const observer = new ResizeObserver(measure);
    if (list.current) observer.observe(list.current);
    return () => observer.disconnect();
  }, []);
  const chosen = selectedId.value;
  const { row } = sight;
  useEffect(() => {
    if (!list.current) return; // another view was opened before this one was painted
    const at = items.peek().findIndex((item) => item.id === chosen) * row;
    const { scrollTop, clientHeight } = list.current;
    if (at >= 0 && (at < scrollTop || at + row > scrollTop + clientHeight)) list.current.scrollTop = at - clientHeight / 2;
  }, [chosen]);
  const shown = all.slice(sight.from, sight.from + sight.rows);
  return (
    <ul class="queue" ref={list} onScroll={measure} tabIndex={-1}>
      <li aria-hidden="true" style={{ height: `${sight.from * row}px` }} />
      {shown.map((item, index) => (
        <Row key={item.id} item={item} number={sight.from + index + 1} of={all.length} />
      ))}
      <li aria-hidden="true" style={{ height: `${Math.max(all.length - sight.from - shown.length, 0) * row}px` }} />
    </ul>
  );
}

function Row({ item, number, of }: { item: Item; number: number; of: number }) {
  const t = words.value;
  const isChosen = item.id === selectedId.value;
  const name = item.name.split("/").pop() ?? item.name;
  return (
    <li class="row" data-state={item.state} aria-setsize={of} aria-posinset={number}>
      <button class="row-main" aria-current={isChosen ? "true" : undefined} title={item.name} onClick={() => select(item.id)}>
        <span class="row-name">
          {item.kind === "archive" && <Icon name="zip" />}
          <span>{name}</span>
        </span>
        <span class="row-state">{stateOf(item)}</span>
      </button>
      {item.state === "sending" || (item.state === "looking" && item.kind === "archive") ? (
        <span class="row-progress" style={{ width: `${item.progress * 100}%` }} />
      ) : null}
      {item.state === "failed" && item.open && (
        <button class="tool small" title={t.retry} aria-label={t.retryNamed(name)} onClick={() => retry(item.id)}>
          <Icon name="retry" />
        </button>
      )}
      <button class="tool small quiet" title={t.remove} aria-label={t.removeNamed(name)} onClick={() => remove(item.id)}>
        <Icon name="close" />
      </button>
    </li>
  );
}

function stateOf(item: Item): string {
  const t = words.value;
  switch (item.state) {
    case "waiting":
      return t.stateWaiting;
    case "sending":
      return t.stateSending;
    case "looking": {
      if (!item.job) return t.stateLooking;
      const left = item.job.seconds_left;
      const text = t.archiveProgress(item.job.looked_at, item.job.files);
      return left === null ? text : `${text} · ${t.secondsLeft(left)}`;
    }
    case "failed":
      return item.problem ? textOf(item.problem) : t.stateFailed;
    case "done":
      if (item.job) return t.archiveDone(item.job.files, item.job.errors);
      return t.objects(item.found?.detections.filter(passes).length ?? 0);
  }
}
