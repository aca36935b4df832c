// One completion: image with boxes, tokens in colour with their numbers, answer, reward, advantage.
const sequential = (rgb, most) => value => `rgba(${rgb},${(Math.min(Math.abs(value) / most, 1) * 0.85).toFixed(3)})`;
const diverging = most => value => sequential(value > 0 ? "201,64,46" : "36,99,196", most)(value);
const MODES = {
  sampler: { label: "log-probability", ends: () => [0, -5], paint: () => sequential("201,64,46", 5) },
  entropy: { label: "entropy, nats", ends: () => [0, 3], paint: () => sequential("138,79,191", 3) },
  gap: { label: "gap, trainer - sampler", symmetric: true },
  ratio: { label: "ratio", symmetric: true, of: value => Math.log(value), said: value => Math.exp(value) },
};
const NUMBERS = [
  ["log-prob, sampler", "sampler"], ["log-prob, trainer", "trainer"], ["log-prob, reference", "reference"],
  ["gap", "gap"], ["ratio", "ratio"], ["entropy", "entropy"],
];
const at = (column, i) => Array.isArray(column) ? column[i] : column;

// How the tokens are painted: a function of the number, and the legend's ends.
function scale(completion, key) {
  const mode = MODES[key];
  if (!mode.symmetric) return { ends: mode.ends(), paint: mode.paint() };
  const of = mode.of || (value => value), said = mode.said || (value => value);
  const sizes = completion.tokens.map((_, i) => at(completion[key], i)).filter(v => v != null)
    .map(value => Math.abs(of(value))).filter(Number.isFinite);
  const most = sizes.reduce((a, b) => Math.max(a, b), 0) || 1e-6, paint = diverging(most);
  return { ends: [said(-most), said(most)], paint: value => paint(of(value)), steps: t => said((2 * t - 1) * most) };
}

function tokens(completion, key) {
  if (!completion.tokens) {
    return el("div", {}, el("pre", { class: "tokens" }, completion.text),
      el("p", { class: "note" }, "no numbers of single tokens: not recorded, or the run has no tokenizer for them"));
  }
  const known = completion[key] !== undefined;
  const { ends, paint, steps } = known ? scale(completion, key) : {};
  const [first, last] = completion.answer || [-1, -1];
  const special = new Set(completion.special);
  const box = el("pre", { class: "tokens" }, completion.tokens.map((text, i) => {
    const value = known ? at(completion[key], i) : null;
    return el("span", {
      class: [i >= first && i < last && "answer", special.has(i) && "special",
        at(completion.mask, i) === 0 && "masked"].filter(Boolean).join(" "),
      style: { backgroundColor: value == null ? "" : paint(value) }, "data-i": i,
    }, text);
  }));
  box.addEventListener("mousemove", event => {
    const i = event.target.dataset.i;
    tip(event, i === undefined ? null : numbers(completion, Number(i)));
  });
  box.addEventListener("mouseleave", event => tip(event, null));
  return el("div", {}, known
    ? legend(MODES[key].label, ends, paint, steps, completion.mask !== undefined)
    : el("p", { class: "note" }, `${MODES[key].label}: not recorded for this completion`), box);
}

function numbers(completion, i) {
  const known = NUMBERS.filter(([, key]) => completion[key] !== undefined);
  return [["token", JSON.stringify(completion.tokens[i])],
    ...known.map(([name, key]) => [name, number(at(completion[key], i))]),
    ...(completion.mask === undefined ? [] : [["in the loss", at(completion.mask, i) ? "yes" : "no"]])];
}

function legend(label, [low, high], paint, steps, masks) {
  const value = steps || (t => low + t * (high - low));
  const bars = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1].map(t =>
    el("i", { style: { backgroundColor: paint(value(t)) } }));
  return el("div", { class: "scale" }, label, " ", number(low, 3), el("span", {}, bars), number(high, 3),
    el("span", { class: "answer" }, "answer"), masks && el("span", { class: "masked" }, "not in the loss"));
}

function picture(run, group, completion) {
  const images = group.images.map((place, n) => {
    if (place == null) return el("p", { class: "note" }, "image cannot be shown: ", group.files[n]);
    const drawn = n ? [] : [...group.boxes.map(box => rectangle(box, "gold")),
      ...(completion ? completion.boxes : []).map(box => rectangle(box, "predicted"))];
    const overlay = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" }, drawn);
    return el("div", { class: "image" }, el("img", { src: run.images[place], alt: group.files[n] }), overlay);
  });
  const boxed = group.boxes.length || (completion && completion.boxes.length);
  return el("div", {}, images, boxed ? el("div", { class: "boxes" },
    el("span", { class: "gold" }, "gold box"), el("span", { class: "predicted" }, "predicted box")) : null);
}

const rectangle = ([x1, y1, x2, y2], kind) => svg("rect", {
  x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), class: kind,
});

const PARTS = { raw: "  raw, before shaping", format: "  an answer was found" };

const rewardText = completion => completion.failed ? "failed" : number(completion.reward);

function facts(group, completion) {
  const rows = [
    ["reward paid", rewardText(completion)],
    ...Object.entries(completion.parts).map(([name, value]) => [PARTS[name] || `  ${name}`, number(value)]),
    ["advantage", completion.advantage == null ? null : number(completion.advantage)],
    ["extracted", completion.extracted], ["why not paid", completion.why], ["gold", group.gold],
    ["verifier", group.kind], ["tokens", `${completion.length}${completion.truncated ? ", truncated" : ""}`],
    ["record", group.id], ["image", group.files.join(", ")],
  ];
  return el("table", { class: "facts" }, rows.filter(([, value]) => value != null).map(([name, value]) =>
    el("tr", {}, el("th", {}, name), el("td", {}, value))));
}

function sample(run, group, completion, key) {
  return el("article", { class: "sample" },
    el("div", { class: "side" }, picture(run, group, completion), facts(group, completion)),
    el("div", { class: "said" }, el("pre", { class: "question" }, group.question), tokens(completion, key)));
}
