// Says in words what is under the pointer, or where the image was tapped. What the server sent stands in the attribute
// data-maps of the element: for each map its words, and the place in them of each pixel, deflated.
const unpack = async (map) => {
    const packed = Uint8Array.from(atob(map.places), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = await new Response(stream).arrayBuffer();
    map.places = map.bytes === 4 ? new Uint32Array(bytes) : new Uint16Array(bytes);
    return map;
};
let maps = [], loaded = 0;
const load = async () => {
    const turn = ++loaded;
    maps = [];
    const line = element.querySelector(".reading");
    const found = await Promise.all(JSON.parse(line?.dataset.maps ?? "[]").map(unpack));
    if (turn === loaded) maps = found;  // not what an older answer had, which took longer
};
const placeIn = (image, event) => {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);  // object-fit: contain
    const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
    const x = (event.clientX - box.left - (box.width - width) / 2) / width;
    const y = (event.clientY - box.top - (box.height - height) / 2) / height;
    return x >= 0 && x < 1 && y >= 0 && y < 1 ? [x, y] : null;
};
const read = (event) => {
    const line = element.querySelector(".reading");
    const view = document.querySelector(props.target);
    if (!line || !maps.length || !view?.contains(event.target)) return;
    const image = [...view.querySelectorAll("img")].find((one) => one.naturalWidth);
    const place = image && placeIn(image, event);
    if (!place) return;
    line.replaceChildren(...maps.map((map) => {
        const pixel = Math.floor(place[1] * map.height) * map.width + Math.floor(place[0] * map.width);
        const [both, name, words] = ["span", "small", "b"].map((kind) => document.createElement(kind));
        name.textContent = map.name;
        words.textContent = map.words[map.places[pixel]];
        both.append(name, " ", words);
        return both;
    }));
};
document.addEventListener("pointermove", read, { passive: true });
document.addEventListener("pointerdown", read, { passive: true, capture: true });
watch("value", load);
load();
