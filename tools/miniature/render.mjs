// Render the artwork of objects.json to 128-pixel PNGs: node render.mjs BUILD_DIR
// One icon per process call would be safest, but resvg only aborts on icons outside objects.json.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const build = process.argv[2];
const require = createRequire(path.join(build, "package.json"));
const { Resvg } = require("@resvg/resvg-js");
const families = JSON.parse(fs.readFileSync(new URL("objects.json", import.meta.url)));
const objects = Object.assign({}, ...Object.values(families));
const sets = {
  noto: "noto",
  twemoji: "twemoji",
  ink: "fluent-emoji-high-contrast",
  emojione: "emojione",
};
const english = require("emojibase-data/en/data.json");
const lib = require("emojilib");

fs.mkdirSync(path.join(build, "art"), { recursive: true });
for (const [style, name] of Object.entries(sets)) {
  const set = require(`@iconify-json/${name}/icons.json`);
  for (const [object, icon] of Object.entries(objects)) {
    const found = set.icons[icon] ?? set.icons[set.aliases?.[icon]?.parent];
    if (!found) { console.error(`${style} has no ${object}`); continue; }
    const [w, h] = [found.width ?? set.width ?? 16, found.height ?? set.height ?? 16];
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${w} ${h}" width="128" height="128">${found.body}</svg>`;
    fs.writeFileSync(path.join(build, "art", `${style}__${object}.png`),
      new Resvg(svg, { fitTo: { mode: "width", value: 128 } }).render().asPng());
  }
  // Other icons of the same set, the judge's "none of these": every 12th, skipping people and flags.
  const known = new Set(Object.values(objects));
  const others = Object.keys(set.icons).filter((n) => !known.has(n) &&
    !/flag|person|man|woman|people|face|hand|family|skin|medium|light|dark|clock|square|button|circle/.test(n));
  if (style === "emojione") continue;
  fs.mkdirSync(path.join(build, "other"), { recursive: true });
  for (const n of others.filter((_, i) => i % 6 === 0).slice(0, 140)) {
    const found = set.icons[n];
    const [w, h] = [found.width ?? set.width ?? 16, found.height ?? set.height ?? 16];
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${w} ${h}" width="128" height="128">${found.body}</svg>`;
    try {
      fs.writeFileSync(path.join(build, "other", `${style}__${n}.png`),
        new Resvg(svg, { fitTo: { mode: "width", value: 128 } }).render().asPng());
    } catch (error) { console.error(`${style} ${n}: ${error.message}`); }
  }
}

// The words: hexcode, emoji and keywords of every object, and its names in the languages asked for.
const languages = ["fr", "de", "es", "it", "pt", "nl", "sv", "pl"];
const labels = Object.fromEntries(languages.map((l) =>
  [l, Object.fromEntries(require(`emojibase-data/${l}/data.json`).map((x) => [x.hexcode, x.label]))]));
const words = {};
for (const [object, icon] of Object.entries(objects)) {
  const entry = english.find((x) => x.label.replaceAll(" ", "-") === icon);
  words[object] = {
    hexcode: entry.hexcode,
    keywords: [...(entry.tags ?? []), ...(lib[entry.emoji] ?? []), ...(lib[entry.emoji.replace("\ufe0f", "")] ?? [])],
    names: Object.fromEntries(languages.map((l) => [l, labels[l][entry.hexcode]])),
  };
  const code = entry.hexcode.toLowerCase();
  const folder = path.join(path.dirname(require.resolve("@lobehub/fluent-emoji-3d/package.json")), "assets");
  const file = [code, code.replace("-fe0f", ""), `${code}-fe0f`].map((c) => path.join(folder, `${c}.webp`)).find(fs.existsSync);
  if (file) fs.copyFileSync(file, path.join(build, "art", `fluent__${object}.webp`));
  else console.error(`fluent has no ${object}`);
}
fs.writeFileSync(path.join(build, "words.json"), JSON.stringify(words));
