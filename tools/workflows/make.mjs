// Open API graphs in a running ComfyUI and save what its page makes of them, with a screenshot each.
//
//     node tools/workflows/make.mjs http://127.0.0.1:8188 API_FOLDER OUT_FOLDER
//
// Needs playwright-core and a chromium (CHROMIUM, default /usr/bin/chromium).
import fs from "node:fs";
import path from "node:path";
import { chromium } from "playwright-core";

const [url, from, to] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));
await page.goto(url);
await page.waitForFunction(() => window.app?.graph && window.app?.loadApiJson, null, { timeout: 120000 });
await page.waitForTimeout(3000);
await page.keyboard.press("Escape"); // the template browser of a first visit
fs.mkdirSync(to, { recursive: true });
for (const file of fs.readdirSync(from).filter((name) => name.endsWith(".json"))) {
  const name = path.basename(file, ".json");
  const graph = JSON.parse(fs.readFileSync(path.join(from, file), "utf8"));
  const made = await page.evaluate(
    async ([graph, name]) => {
      await window.app.loadApiJson(graph, name);
      for (const node of window.app.graph.nodes)
        for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
      window.app.graph.arrange?.();
      window.app.canvas.setDirty(true, true);
      return window.app.graph.serialize();
    },
    [graph, name],
  );
  fs.writeFileSync(path.join(to, `${name}.json`), JSON.stringify(made, null, 1) + "\n");
  await page.evaluate(async ([made]) => window.app.loadGraphData(made), [made]);
  await page.waitForTimeout(500);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(1500);
  await page.screenshot({ path: path.join(to, `${name}.png`) });
  console.log(name, made.nodes.length, "nodes");
}
if (errors.length) console.log("page errors:", errors);
await browser.close();
process.exit(errors.length ? 1 : 0);
