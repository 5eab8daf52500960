import { Icon, type IconName } from "../parts/Icon";
import { tell } from "../state/notices";
import { logOut } from "../state/server";
import { connection, helpOpen, language, modelInUse, modelName, status, theme, view, words, type Theme } from "../state/store";
import { VIEWS } from "../views";

const THEMES: readonly Theme[] = ["system", "light", "dark"];
const THEME_ICONS: Record<Theme, IconName> = { system: "system", light: "sun", dark: "moon" };

/** Name, views, how the server is, language, colours, help. */
export function Header() {
  const t = words.value;
  const themeNames: Record<Theme, string> = { system: t.themeSystem, light: t.themeLight, dark: t.themeDark };
  const nextTheme = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]!;
  const up = connection.value === "up";
  return (
    <header class="header">
      <a class="skip" href="#main">{t.skipToContent}</a>
      <span class="brand">
        <svg viewBox="0 0 32 32" aria-hidden="true">
          <path class="corners" d="M5 11V7a2 2 0 0 1 2-2h4M21 5h4a2 2 0 0 1 2 2v4M27 21v4a2 2 0 0 1-2 2h-4M11 27H7a2 2 0 0 1-2-2v-4" />
          <path class="corners" d="M7.500 16S11 10.500 16 10.500 24.500 16 24.500 16 21 21.500 16 21.500 7.500 16 7.500 16Z" />
          <circle cx="16" cy="16" r="2.600" />
        </svg>
        manyeyes
      </span>
      <nav class="tabs" aria-label={t.mainNavigation}>
        {VIEWS.map(({ id, name, waiting }) => (
          <a key={id} href={`#${id}`} aria-current={view.value === id ? "page" : undefined}>
            {t[name]}
            {waiting && waiting.value > 0 && <span class="count">{waiting.value}</span>}
          </a>
        ))}
      </nav>
      <span class="server" data-state={up ? "up" : "down"} role="status">
        <span class="dot" aria-hidden="true" />
        <span class="visually-hidden">{up ? t.connected : t.notConnected}</span>
        {up && <span class="server-model">{modelName(modelInUse.value)}</span>}
      </span>
      <button
        class="tool wide"
        lang={language.value === "en" ? "zh" : "en"}
        aria-label={language.value === "en" ? "中文：切换语言" : "English: change the language"}
        onClick={() => (language.value = language.value === "en" ? "zh" : "en")}
      >
        {language.value === "en" ? "中文" : "English"}
      </button>
      <button
        class="tool"
        title={`${t.theme}: ${themeNames[theme.value]}`}
        aria-label={`${t.theme}: ${themeNames[theme.value]}`}
        onClick={() => (theme.value = nextTheme)}
      >
        <Icon name={THEME_ICONS[theme.value]} />
      </button>
      <button class="tool" title={`${t.help} (?)`} aria-label={t.help} onClick={() => (helpOpen.value = true)}>
        <Icon name="help" />
      </button>
      {status.value?.guarded && up && (
        <button class="tool" title={t.logOut} aria-label={t.logOut} onClick={() => void logOut().catch(tell)}>
          <Icon name="leave" />
        </button>
      )}
    </header>
  );
}
