import { FederationView } from "./panels/FederationView";
import { Header } from "./panels/Header";
import { Help } from "./panels/Help";
import { Login } from "./panels/Login";
import { Notices } from "./panels/Notices";
import { connection, status, view, words } from "./state/store";
import { VIEWS } from "./views";

/** The page: header, messages, and the view that is open. */
export function App() {
  return (
    <>
      <Header />
      <Notices />
      <main id="main" tabIndex={-1}>
        <Content />
      </main>
      <Help />
    </>
  );
}

function Content() {
  const t = words.value;
  if (connection.value === "password") return <Login />;
  if (connection.value === "none") {
    return (
      <>
        <section class="sheet">
          <div class="panel box">
            <h1>{t.noModelTitle}</h1>
            <p>{t.noModel}</p>
          </div>
        </section>
        <FederationView />
      </>
    );
  }
  // A server that was there once keeps its view while it is away.
  if (!status.value) return <p class="muted waiting">{t.asking}</p>;
  const { panel: Panel } = VIEWS.find(({ id }) => id === view.value) ?? VIEWS[0]!;
  return <Panel />;
}
