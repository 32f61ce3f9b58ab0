const tip = document.getElementById("tip");
const units = ["B", "KiB", "MiB", "GiB", "TiB"];
function size(bytes) {
  let unit = 0;
  while (bytes >= 1024) { bytes /= 1024; unit += 1; }
  return bytes.toPrecision(3) + " " + units[unit];
}
document.addEventListener("mousemove", function (event) {
  const data = event.target.dataset;
  if (!data || data.bytes === undefined) { tip.style.display = "none"; return; }
  let text = data.name + "\n" + data.what + "\n" + size(+data.bytes);
  if (data.offset !== undefined) { text += " at offset " + size(+data.offset); }
  tip.textContent = text;
  tip.style.display = "block";
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + "px";
});
