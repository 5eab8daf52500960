import { Confirm } from "../parts/Confirm";
import { Icon } from "../parts/Icon";
import { inWords } from "../state/export";
import { forgetSeen, forgetShown, historyClass, historySource, loadMoreSeen, moreSeen, seen } from "../state/history";
import { language, mayChange, modelName, words } from "../state/store";
import { sourceName, when } from "../text/format";

/** Pictures that were looked at, the newest first; one of them or all that are chosen can be forgotten. */
export function HistoryTable() {
  const t = words.value;
  const list = seen.value;
  return (
    <section class="panel box" aria-labelledby="seen-title">
      <div class="panel-head wrap">
        <h2 id="seen-title">{t.seenTitle}</h2>
        <span class="muted small" role="status" id="seen-count">
          {moreSeen.value ? t.seenAtLeast(list.length) : t.seenCount(list.length)}
        </span>
        {mayChange.value && list.length > 0 && (
          <Confirm
            label={t.deleteShown}
            question={t.deleteShownSure(historyClass.value || t.anyClass, historySource.value ? sourceName(historySource.value, t) : t.reviewAnySource)}
            onConfirm={() => void forgetShown()}
          />
        )}
      </div>
      {list.length === 0 ? (
        <p class="muted">{t.historyNone}</p>
      ) : (
        <div class="table-scroll" tabIndex={0} role="region" aria-label={t.seenTitle}>
          <table class="table">
            <thead>
              <tr>
                <th>{t.time}</th>
                <th>{t.reviewSource}</th>
                <th>{t.picture}</th>
                <th>{t.detections}</th>
                <th>{t.model}</th>
                <th class="n">ms</th>
                {mayChange.value && (
                  <th>
                    <span class="visually-hidden">{t.delete}</span>
                  </th>
                )}
              </tr>
            </thead>
            <tbody>
              {list.map((one) => (
                <tr key={one.id}>
                  <td>{when(one.time, language.value)}</td>
                  <td>{sourceName(one.source, t)}</td>
                  <td>{one.name}</td>
                  <td class="wrap">{inWords(Object.entries(one.counts), language.value) || t.objects(0)}</td>
                  <td>{modelName(one.model)}</td>
                  <td class="n">{Math.round(one.milliseconds)}</td>
                  {mayChange.value && (
                    <td class="n">
                      <button
                        class="tool small"
                        title={t.delete}
                        aria-label={t.deleteSeen(one.name || sourceName(one.source, t), when(one.time, language.value))}
                        onClick={() => void forgetSeen(one.id)}
                      >
                        <Icon name="trash" />
                      </button>
                    </td>
                  )}
                </tr>
              ))}
            </tbody>
          </table>
          {moreSeen.value && (
            <button class="link" onClick={() => void loadMoreSeen()}>
              {t.reviewMore}
            </button>
          )}
        </div>
      )}
    </section>
  );
}
