const figures = JSON.parse(document.getElementById("figures").textContent);
const places = document.querySelectorAll(".chart");
const dark = matchMedia("(prefers-color-scheme: dark)");

function inTheme(figure, isDark) {
  const copy = structuredClone({ data: figure.data, layout: figure.layout });
  for (const [path, value] of isDark ? figure.dark : []) {
    const last = path.at(-1);
    path.slice(0, -1).reduce((inside, key) => inside[key], copy)[last] = value;
  }
  return copy;
}

// The picture bears its title and what it is of below, where no legend is, in the page's font, on the page's colour.
async function save(figure, place, format) {
  const { data, layout } = inTheme(figure, dark.matches);
  const width = place.clientWidth, height = place.clientHeight + 64;
  layout.margin = { ...layout.margin, b: (layout.margin?.b ?? 40) + 64 };
  layout.title = { text: figure.title, subtitle: { text: figure.subject }, x: 0.02, y: 0, yref: "container",
                   yanchor: "bottom", pad: { b: 30 }, font: { size: 14 } };
  layout.paper_bgcolor = getComputedStyle(document.body).backgroundColor;
  const drawn = await Plotly.toImage({ data, layout }, { format: "svg", width, height });
  const fonts = [...document.styleSheets[0].cssRules].filter((rule) => rule.cssText.startsWith("@font-face"));
  const style = "<style>" + fonts.slice(0, 1).map((rule) => rule.cssText).join("") + "</style>";
  const svg = decodeURIComponent(drawn.slice(drawn.indexOf(",") + 1)).replace(/<svg[^>]*>/, (open) => open + style);
  let file = new Blob([svg], { type: "image/svg+xml" });
  if (format === "png") {
    const image = new Image(), canvas = document.createElement("canvas");
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg);
    await image.decode();
    [canvas.width, canvas.height] = [2 * width, 2 * height];
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    file = await new Promise((done) => canvas.toBlob(done, "image/png"));
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = figure.name + "." + format;
  link.click();
}

function draw(isDark) {
  figures.forEach((figure, i) => {
    const { data, layout } = inTheme(figure, isDark);
    const place = places[i];
    const button = (format, icon) => ({ name: format, title: "Save as " + format.toUpperCase(), icon,
                                        click: () => save(figure, place, format) });
    const saving = [button("png", Plotly.Icons.camera), button("svg", Plotly.Icons.disk)];
    const back = figure.drag ? ["resetScale2d"] : [];
    Plotly.react(place, data, { ...layout, autosize: true },
                 { displaylogo: false, responsive: true, doubleClick: "reset", modeBarButtons: [[...back, ...saving]] });
  });
  document.body.dataset.drawn = isDark ? "dark" : "light";
}

async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  draw(dark.matches);
  dark.addEventListener("change", () => draw(dark.matches));
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", () => draw(dark.matches));
}

start();
