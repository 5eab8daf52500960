import { federation } from "../state/federation";
import { words } from "../state/store";
import { FederationNow } from "./FederationNow";
import { ModelTable } from "./ModelTable";
import { RoundsPanel } from "./RoundsPanel";
import { SentTable } from "./SentTable";

/** What this site's node does with the others: at a glance at the top, in full below. */
export function FederationView() {
  const t = words.value;
  const now = federation.value;
  if (!now) return <p class="muted waiting">{t.asking}</p>;
  return (
    <div class="sheet">
      {now.member ? (
        <>
          <FederationNow node={now} />
          <RoundsPanel rounds={now.rounds_done} />
          <SentTable />
        </>
      ) : (
        <section class="panel box" aria-labelledby="alone-title">
          <h2 id="alone-title">{t.aloneTitle}</h2>
          <p>{t.alone}</p>
        </section>
      )}
      <ModelTable />
    </div>
  );
}
