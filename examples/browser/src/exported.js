// The exported folder: its recipe and networks, from files or a zip, checked before anything is done with them.
import { unzipSync } from "./vendor/fflate.js";

const FORMAT = 1;
const LARGEST_LABEL = 255;

/** What a person is told; everything else that is thrown is a fault of the page. */
export class Problem extends Error {}

/** Files of a chosen folder: name without folder to content. */
export async function filesOfFolder(files) {
  const wanted = [...files].filter((file) => /(^recipe\.json|\.onnx)$/.test(file.name));
  return new Map(await Promise.all(wanted.map(async (file) => [file.name, new Uint8Array(await file.arrayBuffer())])));
}

/** Files of a zip, likewise. */
export async function filesOfZip(file) {
  const content = new Uint8Array(await file.arrayBuffer());
  let entries;
  try {
    entries = unzipSync(content, { filter: ({ name }) => /(^|\/)(recipe\.json|[^/]*\.onnx)$/.test(name) });
  } catch {
    throw new Problem(`${file.name} is not a zip that can be read`);
  }
  return new Map(Object.entries(entries).map(([path, bytes]) => [path.split("/").pop(), bytes]));
}

/** The recipe, which this page can follow, and the networks' bytes in its order. */
export async function openExport(files) {
  if (!files.has("recipe.json")) throw new Problem("no recipe.json in it: choose a folder that nnunet_nas export wrote");
  let recipe;
  try {
    recipe = JSON.parse(new TextDecoder().decode(files.get("recipe.json")));
  } catch {
    throw new Problem("recipe.json is damaged: export the model again");
  }
  if (recipe.format !== FORMAT) {
    throw new Problem(`recipe.json has format ${recipe.format}, this page reads ${FORMAT}: use predict.pyz beside it`);
  }
  requirePossible(recipe);
  const networks = [];
  for (const { file, sha256 } of recipe.networks) {
    if (!files.has(file)) throw new Problem(`${file} is missing: copy the exported folder again, whole`);
    if ((await digest(files.get(file))) !== sha256) {
      throw new Problem(`${file} is not the network that was exported (its digest differs): export the model again`);
    }
    networks.push(files.get(file));
  }
  return { recipe, networks };
}

function requirePossible(recipe) {
  const elsewhere = "use predict.pyz beside it";
  const values = [recipe.region_values ?? [], Object.values(recipe.labels)].flat(2);
  if (recipe.patch_size.length !== 2) throw new Problem(`this page cannot run a 3-D model: ${elsewhere}`);
  if (recipe.reader !== "NaturalImage2DIO") {
    throw new Problem(`the model reads ${recipe.file_ending} files, which this page cannot: ${elsewhere}`);
  }
  if (recipe.channels.length !== 1 && recipe.channels.length !== 3) {
    throw new Problem(`the model has ${recipe.channels.length} channels, this page reads grey or colour: ${elsewhere}`);
  }
  if (recipe.spacing.some((step) => step !== 1) || recipe.transpose.join() !== "0,1,2") {
    throw new Problem(`the model resamples or transposes images, which this page does not do: ${elsewhere}`);
  }
  if (Math.max(...values) > LARGEST_LABEL) throw new Problem(`the model has labels beyond ${LARGEST_LABEL}: ${elsewhere}`);
}

async function digest(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
