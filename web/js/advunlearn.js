// What this pack's nodes say, in their own words: errors as a toast and as a text on the node.
//
// ComfyUI's page shows a general sentence for an error of a custom node. The text on a node is the page's own progress
// text, which both of its renderers draw; the nodes send it while they run, and this file adds what only the page knows:
// refused inputs, what a node needs before it can run, and what a node said in the run whose result is taken again.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const PREFIX = "AdvUnlearn";
const NO_ENCODER =
  "No robust encoder yet: train one with Train AdvUnlearn Encoder (it is saved into output/clip), put one into " +
  "models/text_encoders, or choose one under released: it is downloaded when this node runs.";
const NEW_ENCODER = "An encoder was saved after this page was opened: press R to see it under encoder.";
const TEXT = "$$node-text-preview"; // the page's widget for progress text
const LAST_TEXT = "advunlearn_text"; // in the output of a node
const [CHARACTER, LINE, MARGIN] = [6.4, 16, 60]; // pixels of its font; its margins
const PICTURE = "$$canvas-image-preview"; // the page's widget for the picture of a node, by itself 220 pixels high
// Height by width of the nodes' pictures.
const RATIOS = { AdvUnlearnTrain: 600 / 512, AdvUnlearnAttack: 600 / 1050 };
const lastText = new Map(); // node id -> what the node said last

function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === "error" ? 30000 : 15000 });
}

function findTitle(id, type) {
  return app.graph.getNodeById(id)?.title ?? type;
}

function showOnNode(id, text) {
  api.dispatchCustomEvent("progress_text", { nodeId: String(id), text });
}

// On its canvas the page's widget breaks lines inside words and shows two of them: break at spaces, make room for all.
function makeRoom(id, text) {
  if (window.LiteGraph?.vueNodesMode) return;
  const node = app.graph.getNodeById(id);
  const widget = node?.widgets?.find(({ name }) => name === TEXT);
  if (!widget || !node.comfyClass?.startsWith(PREFIX)) return;
  const lines = breakLines(text, Math.max(24, Math.floor((node.size[0] - MARGIN) / CHARACTER)));
  widget.value = lines.join("\n");
  widget.options.getMinHeight = () => MARGIN / 2 + LINE * lines.length;
  const picture = node.widgets.find(({ name }) => name === PICTURE);
  const ratio = RATIOS[node.comfyClass];
  if (picture && ratio) picture.computeLayoutSize = () => ({ minHeight: node.size[0] * ratio, minWidth: 1 });
  const height = node.computeSize()[1];
  if (node.size[1] < height) node.setSize([node.size[0], height]);
}

function breakLines(text, columns) {
  return text.split("\n").flatMap((line) => {
    const lines = [""];
    for (const word of line.split(" ")) {
      const last = lines.at(-1);
      if (last && last.length + 1 + word.length > columns) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines;
  });
}

const OWN = "custom_validation_failed";

// The host repeats the sentence of a pack's own check for every input of the check, as "<input> - <sentence>". The
// sentence begins with the input that is wrong: the page keeps that one.
function readSentence({ type, message, details, extra_info: info }) {
  const repeated = `${info?.input_name} - `;
  return type === OWN && details.startsWith(repeated) ? details.slice(repeated.length) : `${message}: ${details}`;
}

function isAbout(error, inputs) {
  const [first] = readSentence(error).match(/^\w*/);
  return error.type !== OWN || !inputs.includes(first) || first === error.extra_info?.input_name;
}

// Show what was refused of this pack's nodes, and leave it in the answer once, for the page's own list of errors.
function showRefused(answer) {
  const all = Object.entries(answer?.node_errors ?? {});
  for (const [id, refused] of all) {
    const type = refused.class_type;
    if (!type?.startsWith(PREFIX)) continue;
    const inputs = refused.errors.map(({ extra_info: info }) => info?.input_name);
    refused.errors = refused.errors.filter((error) => isAbout(error, inputs));
    const sentences = [...new Set(refused.errors.map(readSentence))].join("\n");
    toast("error", findTitle(id, type), sentences);
    showOnNode(id, sentences);
  }
  if (all.length && answer.error?.details) {
    const lines = all.flatMap(([, { errors }]) => errors.map(({ message, details }) => `${message}: ${details}`));
    answer.error.details = lines.join("\n");
  }
}

// The answer to a queued graph says which nodes were refused, also if others of the same graph are run.
function followQueue() {
  const queuePrompt = api.queuePrompt;
  api.queuePrompt = async function (...values) {
    try {
      const answer = await queuePrompt.apply(this, values);
      showRefused(answer);
      return answer;
    } catch (error) {
      showRefused(error?.response);
      throw error;
    }
  };
}

// What a node says is about one run of it: not about the next one, nor about a result from the host's cache.
function forgetText(id) {
  if (lastText.has(String(id))) showOnNode(id, " "); // an empty text would be left out
}

function followRun() {
  api.addEventListener("execution_cached", ({ detail: { nodes } }) => nodes.forEach(forgetText));
  api.addEventListener("executing", ({ detail: id }) => forgetText(id));
  api.addEventListener("executed", ({ detail: { node, display_node: shown, output } }) => {
    const [text] = output?.[LAST_TEXT] ?? [];
    if (text) showOnNode(shown ?? node, text);
  });
  api.addEventListener("progress_text", ({ detail: { nodeId, text } }) => {
    lastText.set(String(nodeId), text);
    makeRoom(nodeId, text);
  });
  api.addEventListener("execution_error", ({ detail }) => {
    if (detail.node_type?.startsWith(PREFIX)) {
      toast("error", findTitle(detail.node_id, detail.node_type), detail.exception_message.trim());
    }
  });
  api.addEventListener("execution_interrupted", ({ detail }) => {
    const text = lastText.get(String(detail.node_id));
    if (detail.node_type?.startsWith(PREFIX) && text) {
      toast("info", findTitle(detail.node_id, detail.node_type), text);
    }
  });
}

// A new loader whose list is empty says what to fetch or to train, or that the page's list is old.
async function explainEmptyList(node) {
  const find = (name) => node.widgets?.find((widget) => widget.name === name);
  const [encoder, released] = [find("encoder"), find("released")];
  if (encoder?.value !== "none" || released?.value !== "none" || !isEmpty(encoder.options?.values)) return;
  const described = await (await api.fetchApi(`/object_info/${node.comfyClass}`)).json();
  const [kind, options] = described[node.comfyClass].input.required.encoder;
  const found = Array.isArray(kind) ? kind : options.options; // earlier hosts describe a menu by its entries
  showOnNode(node.id, isEmpty(found) ? NO_ENCODER : NEW_ENCODER);
}

function isEmpty(choices) {
  return (choices ?? []).every((choice) => choice === "none");
}

// The page shows every number of a widget with the digits of its step, and so "-1.0000000" for a learning rate that is
// left to the preset: show those that the number has.
function showOwnDigits(widget) {
  let most = widget.options?.precision;
  if (widget.type !== "number" || !most) return;
  Object.defineProperty(widget.options, "precision", {
    configurable: true,
    enumerable: true,
    get: () => countDigits(Number(widget.value), most),
    set: (digits) => (most = digits),
  });
}

function countDigits(value, most) {
  let digits = 0;
  while (digits < most && Number(value.toFixed(digits)) !== value) digits++;
  return digits;
}

app.registerExtension({
  name: "AdvUnlearn",
  setup() {
    followQueue();
    followRun();
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return;
    node.widgets?.forEach(showOwnDigits);
    if (node.comfyClass !== "AdvUnlearnLoadRobustCLIP") return;
    // Its id comes when it is added to the graph, and its values when a workflow is read.
    setTimeout(() => node.graph && explainEmptyList(node), 100);
  },
});
