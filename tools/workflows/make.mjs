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

// Take a picture of each of the pack's nodes that has none yet, with what it shows; a page drawn small has no texts.
async function pictureNodes() {
  await page.setViewportSize({ width: 1600, height: 2400 });
  const nodes = await page.evaluate(() =>
    window.app.graph.nodes.filter((n) => n.type.startsWith("AdvUnlearn")).map((n) => [n.id, n.type]),
  );
  for (const [id, type] of nodes) {
    const file = path.join(to, "nodes", `${type}.png`);
    if (fs.existsSync(file)) continue;
    const clip = await page.evaluate((id) => {
      const { canvas } = window.app;
      const [x, y, width, height] = window.app.graph.getNodeById(id).boundingRect;
      const room = canvas.canvas.getBoundingClientRect();
      const scale = Math.min(1, (room.height - 200) / height);
      canvas.ds.scale = scale;
      canvas.ds.offset = [300 / scale - x, 100 / scale - y];
      canvas.setDirty(true, true);
      return {
        x: room.left + 290, y: room.top + 90, width: width * scale + 20, height: height * scale + 20,
      };
    }, id);
    await page.waitForTimeout(1000);
    await page.screenshot({ path: file, clip });
  }
  await page.setViewportSize(VIEW);
}

for (const file of files) {
  const name = path.basename(file, ".json");
  const graph = JSON.parse(fs.readFileSync(path.join(from, file), "utf8"));
  const made = await page.evaluate(
    async ([graph, name]) => {
      await window.app.loadApiJson(graph, name);
      // Room for the pictures and texts that come when it runs, so that nothing is laid over anything.
      const room = { SaveImage: 280, PreviewAny: 200, LossGraphNode: 320, AdvUnlearnTrain: 320 };
      for (const node of window.app.graph.nodes) {
        for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
        const own = node.type === "AdvUnlearnTrain" ? node.size[1] : 0; // its widgets stay above its pictures
        if (room[node.type]) node.setSize([Math.max(node.size[0], 260), own + room[node.type]]);
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
    await page.evaluate(() => window.app.queuePrompt(0, 1));
    await page.waitForTimeout(2000);
    const start = Date.now();
    for (let left = 1; left; await page.waitForTimeout(1000)) {
      const queue = await (await fetch(`${url}/queue`)).json();
      left = queue.queue_running.length + queue.queue_pending.length;
      if (Date.now() - start > 30 * 60 * 1000) throw new Error(`${name} does not end`);
    }
  }
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(3000);
  await page.screenshot({ path: path.join(to, `${name}.png`) });
  console.log(name, made.nodes.length, "nodes");
  await pictureNodes();
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
