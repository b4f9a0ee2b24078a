// Shows the notebook's widgets without a kernel. Built into assets/vendor/widgets.js by esbuild.
// The stock embed.js compiles JSON schemas at run time and so needs 'unsafe-eval', and with the packages that it brings for
// outputs, older widgets and foreign markup it is more than twice as large.
import * as base from "@jupyter-widgets/base";
import { ManagerBase } from "@jupyter-widgets/base-manager";
import * as controls from "@jupyter-widgets/controls";
import "@jupyter-widgets/controls/css/widgets-base.css";
import "@jupyter-widgets/controls/css/labvariables.css";
import { Widget } from "@lumino/widgets";

const MODULES = { "@jupyter-widgets/base": base, "@jupyter-widgets/controls": controls };

// Models live in the page alone: there is no kernel to talk to.
class Manager extends ManagerBase {
  async loadClass(name, module, version) {
    const found = MODULES[module]?.[name];
    if (!found) throw new Error(`the book has no widget ${name} of ${module} ${version}`);
    return found;
  }

  async _get_comm_info() {
    return {};
  }

  async _create_comm() {
    return { on_close() {}, on_msg() {}, close() {} };
  }
}

const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';

// A slider's handle has no name, and says its position as a bare number; the label and the readout beside it know better.
function nameSliders(place) {
  for (const handle of place.querySelectorAll('[role="slider"]')) {
    const row = handle.closest(".widget-slider");
    handle.setAttribute("aria-label", row.querySelector(".widget-label").textContent);
    handle.setAttribute("aria-valuetext", row.querySelector(".widget-readout").textContent);
  }
}

async function show() {
  const manager = new Manager();
  const models = new Map();
  for (const tag of document.querySelectorAll(STATE)) {
    for (const model of await manager.set_state(JSON.parse(tag.textContent))) models.set(model.model_id, model);
  }
  for (const tag of document.querySelectorAll(VIEW)) {
    const id = JSON.parse(tag.textContent).model_id;
    const model = models.get(id);
    if (!model) continue; // a run that was cut short may have the view but not the state: its default figure stays
    const place = document.createElement("div");
    place.className = "widget-subarea";
    tag.parentElement.insertBefore(place, tag);
    new MutationObserver(() => nameSliders(place)).observe(place, { childList: true, characterData: true, subtree: true });
    Widget.attach((await manager.create_view(model)).luminoWidget, place);
    // The page also holds the default figure, for print and for readers without scripts; the live widget replaces it.
    document.querySelectorAll(`[data-widget="${CSS.escape(id)}"]`).forEach((n) => n.classList.add("sb-replaced"));
  }
}

// The script stands in the head, so the page is not there yet.
window.addEventListener("load", () => {
  if (document.querySelector(VIEW)) show().catch((error) => console.error("widgets:", error));
});
