// Formulas, read as JSON [{tex, display}] from standard input, as SVG with MathML for screen readers: JSON {formulas, css}.
const packages = process.argv[2];
require(`${packages}/mathjax/es5/node-main.js`)
  .init({
    loader: { load: ["input/tex-full", "output/svg", "a11y/assistive-mml"] },
    svg: { fontCache: "none" }, // shared paths have ids, and a formula may stand on a page twice
  })
  .then((MathJax) => {
    const asked = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
    const adaptor = MathJax.startup.adaptor;
    const formulas = asked.map(({ tex, display }) => adaptor.outerHTML(MathJax.tex2svg(tex, { display })));
    process.stdout.write(JSON.stringify({ formulas, css: adaptor.textContent(MathJax.svgStylesheet()) }));
  })
  .catch((error) => {
    console.error(error.message ?? error);
    process.exit(1);
  });
