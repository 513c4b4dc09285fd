// Puts the page and the two libraries that it uses into dist/, as they are: there is nothing to bundle.
import { cpSync, mkdirSync, rmSync } from "node:fs";

const VENDOR = {
  "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "ort.js",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
  "fflate/esm/browser.js": "fflate.js",
};
const here = (path) => new URL(path, import.meta.url);

rmSync(here("dist"), { recursive: true, force: true });
cpSync(here("src"), here("dist"), { recursive: true });
mkdirSync(here("dist/vendor"));
for (const [source, name] of Object.entries(VENDOR)) {
  cpSync(here(`node_modules/${source}`), here(`dist/vendor/${name}`));
}
