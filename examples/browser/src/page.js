// The page: files in, overlay out. Inference is in worker.js, what it computes in pipeline.js.
import { Problem, filesOfFolder, filesOfZip, openExport } from "./exported.js";
import { labelsToPng, readImage } from "./images.js";

// Distinct for eight neighbours; further classes begin again.
const COLOURS = ["#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#7a5cd6", "#c63d3d", "#3aa6b9"];

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
let waiting = null; // for the worker's answer: {resolve, reject}
let recipe = null;
let result = null; // {name, labels, height, width}

worker.onmessage = ({ data }) => {
  if (data.ready) say(`ready (${data.ready}): choose a model`, "ready");
  else if (data.share !== undefined) say(`predicting, ${Math.round(100 * data.share)} % ...`, "busy");
  else if (data.failed && !waiting) complain(data.failed);
  else if (data.failed) waiting.reject(new Problem(data.failed));
  else waiting.resolve(data.done);
};

function ask(message) {
  return new Promise((resolve, reject) => {
    waiting = { resolve, reject };
    worker.postMessage(message);
  });
}

/** `state` is what a program that watches the page reads. */
function say(text, state) {
  $("status").textContent = text;
  document.body.dataset.state = state;
}

function complain(text) {
  say("", "problem");
  $("problem").textContent = text;
}

/** Runs one action at a time and shows what went wrong. */
async function attempt(action) {
  if (document.body.dataset.state === "busy") return;
  $("problem").textContent = "";
  document.body.dataset.state = "busy";
  try {
    await action();
  } catch (error) {
    complain(error instanceof Problem ? error.message : `unexpected: ${error.message}`);
    if (!(error instanceof Problem)) throw error;
  }
}

async function chooseModel(files) {
  recipe = null;
  $("image-box").disabled = true;
  $("model").textContent = $("warning").textContent = "";
  say("opening the model ...", "busy");
  const opened = await openExport(await files);
  await ask({ open: opened });
  recipe = opened.recipe;
  const { dataset, configuration, parameters, folds } = recipe.model;
  const kind = recipe.channels.length === 1 ? "grey" : "colour";
  $("model").textContent =
    `${dataset}, ${configuration}: ${parameters.toLocaleString("en")} parameters, ` +
    `${folds.length === 1 ? "1 fold" : `${folds.length} folds`}, ${kind} images`;
  $("warning").textContent = recipe.unverified ? `Not verified against nnU-Net: ${recipe.unverified}` : "";
  $("image-box").disabled = false;
  say("drop or choose an image", "ready");
}

async function chooseImage(file) {
  if (!recipe) throw new Problem("choose a model first");
  $("result-box").disabled = true;
  const { image, shown } = await readImage(file, recipe.channels.length);
  for (const id of ["picture", "overlay"]) Object.assign($(id), { width: image.width, height: image.height });
  $("picture").getContext("2d").putImageData(shown, 0, 0);
  say("predicting ...", "busy");
  const { labels, seconds, backend } = await ask({ predict: { image, mirror: $("mirror").checked } });
  result = { name: file.name.replace(/(_0000)?\.[^.]*$/, ""), labels, height: image.height, width: image.width };
  showMask();
  showLegend();
  $("result-box").disabled = false;
  say(`${seconds.toFixed(2)} s, ${backend}`, "done");
}

const colourOf = (label) => COLOURS[(label - 1) % COLOURS.length];

function showMask() {
  const { labels, height, width } = result;
  const mask = new ImageData(width, height);
  const words = new Uint32Array(mask.data.buffer);
  const palette = Array.from({ length: 256 }, (_, label) => {
    if (label === 0) return 0;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(colourOf(label).slice(at, at + 2), 16));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
  for (let i = 0; i < labels.length; i++) words[i] = palette[labels[i]];
  $("overlay").getContext("2d").putImageData(mask, 0, 0);
}

/** Names of the written values: of a class its own, of a region the one that is written for it. */
function namesOfLabels() {
  const foreground = Object.entries(recipe.labels).filter(([name]) => name !== "background" && name !== "ignore");
  return foreground.map(([name, value], i) => [recipe.region_values ? recipe.region_values[i] : value, name]);
}

function showLegend() {
  const counts = new Map();
  for (const label of result.labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  $("legend").replaceChildren(
    ...namesOfLabels().map(([label, name]) => {
      const [entry, patch] = [document.createElement("li"), document.createElement("span")];
      patch.style.background = colourOf(label);
      const share = (100 * (counts.get(label) ?? 0)) / result.labels.length;
      entry.append(patch, `${name} (${label}): ${share.toFixed(1)} %`);
      return entry;
    }),
  );
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(labelsToPng(result.labels, result.height, result.width));
  link.download = `${result.name}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A control whose choice of files starts an action; the same file can be chosen again. */
function onFiles(id, action) {
  $(id).addEventListener("change", async ({ target }) => {
    if (!target.files.length) return;
    const files = [...target.files];
    await attempt(() => action(files));
  });
  $(id).addEventListener("click", ({ target }) => (target.value = ""));
}

onFiles("folder", (files) => chooseModel(filesOfFolder(files)));
onFiles("zip", ([file]) => chooseModel(filesOfZip(file)));
onFiles("image", ([file]) => chooseImage(file));
$("opacity").addEventListener("input", ({ target }) => ($("overlay").style.opacity = target.value / 100));
$("overlay").style.opacity = $("opacity").value / 100;
$("download").addEventListener("click", download);
for (const [event, over] of Object.entries({ dragover: true, dragleave: false, drop: false })) {
  document.addEventListener(event, (happened) => {
    happened.preventDefault();
    $("stage").classList.toggle("over", over);
  });
}
document.addEventListener("drop", ({ dataTransfer }) => {
  const [file] = dataTransfer.files;
  if (!file) return;
  attempt(() => (file.name.endsWith(".zip") ? chooseModel(filesOfZip(file)) : chooseImage(file)));
});
