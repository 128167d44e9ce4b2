// Open API graphs in a running ComfyUI, save what its page makes of them, run them, and take a screenshot of each.
//
//     node tools/workflows/make.mjs http://127.0.0.1:8188 API_FOLDER OUT_FOLDER [NAME ...]
//
// The names say which, and in which order: `train` makes the encoder that others load. `sdxl` is not run; with NO_RUN=1
// in the environment none is.
//
// Needs playwright-core and a chromium (CHROMIUM, default /usr/bin/chromium).
import fs from "node:fs";
import path from "node:path";
import { chromium } from "playwright-core";

const [url, from, to, ...names] = process.argv.slice(2);
const files = names.length ? names.map((n) => `${n}.json`) : fs.readdirSync(from).filter((n) => n.endsWith(".json"));
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const VIEW = { width: 1600, height: 1000 };
const page = await browser.newPage({ viewport: VIEW });
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
await page.goto(url);
await page.waitForFunction(() => window.app?.graph && window.app?.loadApiJson, null, { timeout: 120000 });
await page.waitForTimeout(3000);
await page.keyboard.press("Escape"); // the template browser of a first visit
fs.mkdirSync(path.join(to, "nodes"), { recursive: true });

// Take a picture of some nodes at their full size, side by side as they stand; a page drawn small has no texts. The room
// around them is for what the page lays over its graph: a bar above while it runs, a panel at the right.
async function picture(ids, file) {
  await page.setViewportSize({ width: 2200, height: 2400 });
  const clip = await page.evaluate((ids) => {
    const { canvas, graph } = window.app;
    const bounds = ids.map((id) => graph.getNodeById(id).boundingRect);
    const [x, y] = [0, 1].map((k) => Math.min(...bounds.map((b) => b[k])));
    const [width, height] = [0, 1].map((k) => Math.max(...bounds.map((b) => b[k] + b[k + 2])) - [x, y][k]);
    const room = canvas.canvas.getBoundingClientRect();
    const scale = Math.min(1, (room.height - 300) / height, (room.width - 900) / width);
    canvas.ds.scale = scale;
    canvas.ds.offset = [300 / scale - x, 200 / scale - y];
    canvas.setDirty(true, true);
    return { x: room.left + 290, y: room.top + 190, width: width * scale + 20, height: height * scale + 20 };
  }, ids);
  await page.waitForTimeout(1000);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  await page.screenshot({ path: file, clip });
  await page.setViewportSize(VIEW);
}

// Take a picture of each of the pack's nodes that has none yet, with what it shows.
async function pictureNodes() {
  for (const [id, type] of await nodesOf("AdvUnlearn")) {
    const file = path.join(to, "nodes", `${type}.png`);
    if (!fs.existsSync(file)) await picture([id], file);
  }
}

const nodesOf = (start) =>
  page.evaluate((s) => window.app.graph.nodes.filter((n) => n.type.startsWith(s)).map((n) => [n.id, n.type]), start);

// The pictures in README.md: the training node while it runs, and the evaluation with what it says.
async function pictureTraining() {
  const [[id]] = await nodesOf("AdvUnlearnTrain");
  await picture([id], path.join(to, "readme", "train-node.png"));
}

async function pictureEvaluation() {
  const ids = await page.evaluate(() => {
    const from = window.app.graph.nodes.find((n) => n.type === "AdvUnlearnEvaluate");
    return [from.id, ...from.outputs.flatMap((o) => o.links ?? []).map((l) => window.app.graph.links[l].target_id)];
  });
  await picture(ids, path.join(to, "readme", "before-and-after.png"));
}

for (const file of files) {
  const name = path.basename(file, ".json");
  const graph = JSON.parse(fs.readFileSync(path.join(from, file), "utf8"));
  const made = await page.evaluate(
    async ([graph, name]) => {
      await window.app.loadApiJson(graph, name);
      // Room for the pictures and texts that come when it runs, so that nothing is laid over anything.
      const room = {
        SaveImage: [260, 280], PreviewAny: [420, 240], LossGraphNode: [260, 320], AdvUnlearnTrain: [380, 320],
      };
      if (name === "before-and-after") room.SaveImage = [560, 620];
      for (const node of window.app.graph.nodes) {
        for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
        const own = node.type === "AdvUnlearnTrain" ? node.size[1] : 0; // its widgets stay above its pictures
        const [width, height] = room[node.type] ?? [];
        if (width) node.setSize([Math.max(node.size[0], width), own + height]);
      }
      window.app.graph.arrange?.();
      window.app.canvas.setDirty(true, true);
      return window.app.graph.serialize();
    },
    [graph, name],
  );
  fs.writeFileSync(path.join(to, `${name}.json`), JSON.stringify(made, null, 1) + "\n");
  await page.evaluate(async ([made]) => window.app.loadGraphData(made), [made]);
  await page.waitForTimeout(500);
  if (name !== "sdxl" && !process.env.NO_RUN) {
    await page.evaluate(() => {
      window.previews = 0;
      window.app.api.addEventListener("b_preview", () => window.previews++);
      return window.app.queuePrompt(0, 1);
    });
    await page.waitForTimeout(2000);
    let taken = name !== "train";
    const start = Date.now();
    for (let left = 1; left; await page.waitForTimeout(1000)) {
      const queue = await (await fetch(`${url}/queue`)).json();
      left = queue.queue_running.length + queue.queue_pending.length;
      if (left && !taken && (await page.evaluate(() => window.previews)) > 4) {
        taken = true;
        await pictureTraining();
      }
      if (Date.now() - start > 30 * 60 * 1000) throw new Error(`${name} does not end`);
    }
  }
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(3000);
  await page.screenshot({ path: path.join(to, `${name}.png`) });
  console.log(name, made.nodes.length, "nodes");
  await pictureNodes();
  if (name === "before-and-after" && !process.env.NO_RUN) await pictureEvaluation();
}
// The nodes that no workflow has, as they are when they are put down.
await page.evaluate(() => {
  window.app.graph.clear();
  const types = Object.keys(window.LiteGraph.registered_node_types).filter((type) => type.startsWith("AdvUnlearn"));
  types.forEach((type, k) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [1000 * k, 0];
    window.app.graph.add(node);
  });
});
await pictureNodes();
if (errors.length) console.log("page errors:", errors);
await browser.close();
process.exit(errors.length ? 1 : 0);
