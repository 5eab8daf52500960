import { Icon } from "../parts/Icon";
import { close } from "../state/notices";
import { connection, notices, words } from "../state/store";

/** What must be said: that the server is away, and short messages. */
export function Notices() {
  const t = words.value;
  return (
    <>
      <div role="alert">{connection.value === "lost" && <p class="banner">{t.serverLost}</p>}</div>
      <section class="notices" aria-label={t.notices} aria-live="polite">
        {notices.value.map((notice) => (
          <div key={notice.id} class="notice" data-kind={notice.kind}>
            <span>{notice.text}</span>
            <button class="tool small" aria-label={t.close} onClick={() => close(notice.id)}>
              <Icon name="close" />
            </button>
          </div>
        ))}
      </section>
    </>
  );
}
