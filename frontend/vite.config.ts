import { defineConfig } from "vite";

export default defineConfig({
  build: {
    target: "es2022",
    // The server allows its own files alone: nothing is put into the page as data.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  // `npm run dev` beside `manyeyes serve`; its Host and Origin are those of the server, which refuses others.
  server: {
    proxy: {
      "/api": {
        target: "http://127.0.0.1:5001",
        changeOrigin: true,
        ws: true,
        headers: { origin: "http://127.0.0.1:5001" },
      },
    },
  },
});
