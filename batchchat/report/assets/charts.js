/* Charts: the library is unpacked once, then each figure is drawn in the page's colours, and again when they change. */

const charts = (() => {
  const figures = page.embedded('figures');
  let library = null;

  /** A colour of the page by its name, as the light or dark of this moment has it. */
  function palette() {
    const probe = page.element('span', { hidden: true });
    document.body.append(probe);
    const known = new Map();
    return (name) => {
      if (!known.has(name)) {
        probe.style.color = `var(--${name})`;
        known.set(name, getComputedStyle(probe).color);
      }
      if (name === null) probe.remove();
      return known.get(name);
    };
  }

  function assign(target, path, value) {
    const steps = path.split('.');
    const last = steps.pop();
    for (const step of steps) target = target[step] ??= {};
    target[last] = value;
  }

  /** Data and layout for the library, painted. */
  function painted(figure, color) {
    const { data, layout } = structuredClone({ data: figure.data, layout: figure.layout });
    figure.paint.forEach((paints, index) => {
      for (const [path, name] of Object.entries(paints)) assign(data[index], path, color(name));
    });
    const axis = { gridcolor: color('line'), linecolor: color('line'), zeroline: false, fixedrange: true, automargin: true };
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: color('quiet') };
    const marks = figure.marks ?? [];
    return {
      data,
      layout: {
        paper_bgcolor: 'rgba(0,0,0,0)',
        plot_bgcolor: 'rgba(0,0,0,0)',
        font,
        margin: { l: 8, r: 8, t: marks.length ? 20 : 6, b: 8 },
        dragmode: false,
        showlegend: data.length > 1,
        legend: { orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom', bgcolor: 'rgba(0,0,0,0)' },
        hoverlabel: {
          bgcolor: color('card'), bordercolor: color('line'), font: { ...font, size: 13, color: color('text') },
        },
        ...layout,
        xaxis: { ...axis, showgrid: false, ...layout.xaxis },
        yaxis: { ...axis, ...layout.yaxis },
        shapes: marks.map(({ x }) => ({
          type: 'line', xref: 'x', yref: 'paper', x0: x, x1: x, y0: 0, y1: 1,
          line: { color: color('quiet'), width: 1, dash: 'dot' },
        })),
        annotations: marks.map(({ x, text }) => ({
          xref: 'x', yref: 'paper', x, y: 1, yanchor: 'bottom', showarrow: false, text, font: { ...font, size: 11 },
        })),
        height: undefined,
      },
    };
  }

  const config = { displayModeBar: false, responsive: true, doubleClick: false };

  async function draw(plot) {
    const figure = figures[plot.dataset.figure];
    if (!figure || plot.hidden) return;
    if (figure.layout.height) plot.style.height = `${figure.layout.height}px`;
    const color = palette();
    const { data, layout } = painted(figure, color);
    color(null);
    plot.classList.remove('undrawn');
    await library.react(plot, data, layout, config);
  }

  /** Draw another figure in a place, as soon as the library is there. */
  function show(plot, name) {
    plot.dataset.figure = name;
    if (library) draw(plot);
  }

  function plots() {
    return [...document.querySelectorAll('.plot[data-figure]')];
  }

  function redraw() {
    if (library) for (const plot of plots()) draw(plot);
  }

  async function start() {
    const source = await page.unpacked(document.getElementById('library').textContent);
    // The page's policy knows this very script by its digest.
    document.head.append(page.element('script', {}, source));
    library = globalThis.Plotly;
    for (const plot of plots()) {
      await draw(plot);
      await new Promise((resolve) => setTimeout(resolve));
    }
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
    // Paper is light, whatever the screen is.
    addEventListener('beforeprint', () => {
      document.documentElement.style.colorScheme = 'light';
      redraw();
    });
    addEventListener('afterprint', () => {
      document.documentElement.style.colorScheme = '';
      redraw();
    });
  }

  const ready = start().catch((error) => {
    for (const plot of plots()) {
      plot.classList.add('undrawn');
      plot.textContent = 'This browser is too old to draw the chart.';
    }
    throw error;
  }).finally(() => {
    document.documentElement.dataset.charts = library ? 'drawn' : 'none';
  });

  return { draw, show, ready };
})();
