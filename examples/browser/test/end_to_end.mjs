// Uses the page in a real browser as a person does, with the server gone once the page is loaded.
//
//   node test/end_to_end.mjs JOB.json    prints what was seen as JSON
//
// A job: {chromium, screenshot, models: [{choose: folder or zip, images: [...], masks: [...]}], problems: [{choose, image}]}.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import { serve } from "../serve.mjs";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const served = [];
const server = await serve(0, (path) => served.push(path));
const browser = await chromium.launch({ executablePath: job.chromium, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1100, height: 760 } });
const seen = { errors: [], requests: [], loaded: 0, progress: 0, models: [], problems: [] };
page.on("pageerror", (error) => seen.errors.push(String(error)));
page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));

const state = (...wanted) =>
  page.waitForFunction((names) => names.includes(document.body.dataset.state), wanted, { timeout: 120_000 });
const text = (id) => page.locator(id).textContent();

async function use(control, path, ...wanted) {
  await page.setInputFiles(control, path);
  await state("problem", ...wanted);
  return text("#problem");
}

const choose = (path) => use(path.endsWith(".zip") ? "#zip" : "#folder", path, "ready");

await page.goto(`http://127.0.0.1:${server.address().port}/`);
await state("ready", "problem");
seen.ready = await text("#status");
seen.loaded = served.length;

// From here on there is nobody who could answer a request.
server.close();
server.closeAllConnections();
await page.context().setOffline(true);
page.context().on("request", (request) => seen.requests.push(request.url()));
await page.evaluate(() => {
  window.shown = new Set();
  new MutationObserver(() => window.shown.add(document.getElementById("status").textContent)).observe(
    document.getElementById("status"),
    { childList: true, characterData: true, subtree: true },
  );
});

for (const { choose: path, images, masks } of job.models) {
  const found = { problem: await choose(path), model: await text("#model"), warning: await text("#warning"), runs: [] };
  for (const [i, image] of images.entries()) {
    const problem = await use("#image", image, "done");
    if (!problem) {
      const download = page.waitForEvent("download");
      await page.click("#download");
      await (await download).saveAs(masks[i]);
    }
    found.runs.push({ problem, status: await text("#status"), legend: await page.locator("#legend li").allTextContents() });
  }
  seen.models.push(found);
}
await page.screenshot({ path: job.screenshot });
const shown = await page.evaluate(() => [...window.shown]);
seen.progress = shown.filter((line) => line.startsWith("predicting, ")).length;

for (const { choose: path, image } of job.problems) {
  const opening = await choose(path);
  seen.problems.push(opening || (await use("#image", image, "done")));
}
seen.served = served.length;
await browser.close();
console.log(JSON.stringify(seen));
