// Curves over steps. Several runs lie over one another: the first is drawn through, others dashed.
const KINDS = "digit|mcq|math|iou|open_ended";
const CHARTS = [
  ["reward by verifier", new RegExp(`^reward/(mean|${KINDS})$`)],
  ["held-out reward", new RegExp(`^heldout/(mean|pass_at_n|${KINDS})$`)],
  ["KL to the reference", /^policy\/kl$/],
  ["entropy, nats per token", /^policy\/entropy$/],
  ["completion length, tokens", /^rollout\/length_mean$/],
  ["truncated, failed, with an answer", /^(rollout\/truncated|reward\/(failed|extracted))_frac$/],
  ["groups without spread, clipped ratios", /^(group\/zero_variance|policy\/ratio_clip)_frac$/],
  ["log-prob gap, sampler to trainer", /^policy\/logprob_gap_(mean|max)$/],
  ["padding", /^padding\//],
  ["seconds by phase", /^time\/(?!step_s)/],
  ["seconds per step", /^time\/step_s$/],
  ["loss", /^(train|validation)\/loss$/],
  ["gradient norm", /^train\/grad_norm$/],
  ["learning rate", /^train\/lr$/],
];
const WIDTH = 380, HEIGHT = 190, LEFT = 52, BOTTOM = 20, TOP = 8, RIGHT = 8;

function chart(title, names) {
  const series = [];
  names.forEach((name, n) => DATA.runs.forEach((run, r) => {
    if (!run.metrics[name]) return;
    const colour = COLOURS[(names.length === 1 ? r : n) % COLOURS.length];
    const points = run.metrics.step.map((x, i) => [x, run.metrics[name][i]]);
    const shown = points.filter(([, y]) => y != null);
    if (shown.length) series.push({ name, run, r, colour, points: shown });
  }));
  if (!series.length) return null;
  const every = series.flatMap(({ points }) => points);
  const [x0, x1] = range(every.map(([x]) => x)), [y0, y1] = range(every.map(([, y]) => y));
  const px = x => LEFT + (x - x0) / (x1 - x0 || 1) * (WIDTH - LEFT - RIGHT);
  const py = y => HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP);
  const label = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor }, text);
  const cursor = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
    svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }),
    [0, 0.5, 1].map(part => y0 + part * (y1 - y0)).map(y => label(LEFT - 4, py(y) + 4, number(y, 3), "end")),
    label(LEFT, HEIGHT - 5, number(x0), "start"), label(WIDTH - RIGHT, HEIGHT - 5, number(x1), "end"),
    series.map(one => curve(one, px, py)), cursor);
  drawing.addEventListener("mousemove", event => {
    const box = drawing.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    const near = series.map(one => [one, nearest(one.points, x)]);
    const at = near.reduce((a, b) => Math.abs(b[1][0] - x) < Math.abs(a[1][0] - x) ? b : a)[1][0];
    fill(cursor, { x1: px(at), x2: px(at), visibility: "visible" }, []);
    tip(event, [["step", number(at)], ...near.map(([one, [, y]]) => [caption(one), number(y)])]);
  });
  drawing.addEventListener("mouseleave", event => {
    tip(event, null);
    cursor.setAttribute("visibility", "hidden");
  });
  const legend = series.map(one => el("span", {
    class: one.r ? "dashed" : "", style: { borderColor: one.colour },
  }, caption(one)));
  return el("figure", {}, el("figcaption", {}, title), drawing, el("div", { class: "legend" }, legend));
}

const caption = ({ name, run }) =>
  DATA.runs.length > 1 ? `${short(name)} · ${run.label}` : short(name);
const short = name => name.replace(/^(reward|heldout|policy|rollout|group|train|padding|time)\//, "");

function curve({ points, colour, r }, px, py) {
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
  const dash = ["", "5 3", "2 2", "8 3 2 3"][r % 4];
  const dots = points.length > 12 ? [] : points.map(([x, y]) =>
    svg("circle", { cx: px(x), cy: py(y), r: 2, fill: colour }));
  return svg("g", {}, svg("path", { d, class: "curve", stroke: colour, "stroke-dasharray": dash }), dots);
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const pad = low === high ? Math.abs(low) * 0.1 || 1 : 0;
  return [low - pad, high + pad];
}

const nearest = (points, x) =>
  points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);

function overview() {
  const names = [...new Set(DATA.runs.flatMap(run => Object.keys(run.metrics)))].sort();
  const left = new Set(names.filter(name => name !== "step"));
  const figures = CHARTS.map(([title, pattern]) => {
    const own = names.filter(name => pattern.test(name));
    own.forEach(name => left.delete(name));
    return own.length && chart(title, own);
  });
  const others = [...left].map(name => chart(name, [name]));
  return el("section", { id: "overview" },
    DATA.runs.map(run => run.metrics.step ? null : el("p", {}, `${run.label}: no step is done yet`)),
    el("div", { class: "charts" }, figures),
    others.some(Boolean) && el("details", {}, el("summary", {}, "other metrics"),
      el("div", { class: "charts" }, others)));
}
