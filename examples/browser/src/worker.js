// Where inference runs, so that the page stays awake. Messages: {open: {recipe, networks}} and {predict: {image, mirror}}.
import * as ort from "./vendor/ort.js";
import { predict } from "./pipeline.js";

// An ONNX file that returns its input: opening it loads all that inference needs while there is a network.
const NOTHING = "CAgSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEg==";

const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort.wasm", import.meta.url).href };
ort.env.wasm.numThreads = threads;
const backend = `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;

let recipe = null;
let networks = [];

async function open(model) {
  recipe = model.recipe;
  networks = await Promise.all(
    model.networks.map(async (bytes) => {
      const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
      return async (patch) => {
        const input = new ort.Tensor("float32", patch, [1, recipe.channels.length, ...recipe.patch_size]);
        const { logits } = await session.run({ image: input });
        const copy = Float32Array.from(logits.data);
        logits.dispose();
        return copy;
      };
    }),
  );
  return {};
}

async function run({ image, mirror }) {
  const start = performance.now();
  const labels = await predict(image, recipe, networks, { mirror, report: (share) => postMessage({ share }) });
  return { labels, seconds: (performance.now() - start) / 1000, backend };
}

// One after the other: a model that is chosen while another predicts waits.
let last = Promise.resolve();
onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      postMessage({ done: data.open ? await open(data.open) : await run(data.predict) });
    } catch (error) {
      postMessage({ failed: String(error.message ?? error) });
    }
  });
};

ort.InferenceSession.create(Uint8Array.from(atob(NOTHING), (c) => c.charCodeAt(0))).then(
  () => postMessage({ ready: backend }),
  (error) => postMessage({ failed: `this browser cannot run models: ${error.message ?? error}` }),
);
