// A click on a figure shows it as large as the window allows; a click on the large figure closes it.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.zoom"))
  button.addEventListener("click", () => {
    const image = button.querySelector("img").cloneNode();
    image.style.width = `max(96vw, ${button.dataset.width}px)`;
    dialog.replaceChildren(image);
    dialog.showModal();
  });
dialog.addEventListener("click", () => dialog.close());
