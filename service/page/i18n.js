// The page's words, in English and Chinese. `t` looks one up; `translate` fills the markup.

const WORDS = {
  en: {
    views: "Views", search: "Search", classify: "Classify", results: "Results", lookFor: "Look for",
    placeholder: "Describe a picture…", choosePicture: "Search by a picture", clear: "Clear",
    images: "Pictures", captions: "Captions", more: "Show more", api: "API",
    startTitle: "Describe it, or show it.",
    startText: "Type what should be in the picture, in your own words. Or drop, paste or choose a picture to find its like.",
    suggestions: ["something red", "an animal", "food on a plate", "a person smiling"],
    noneTitle: "Nothing here yet",
    noPictures: "This index holds no pictures.",
    noCaptions: "This index holds no captions. Search for pictures instead.",
    found: (n, ms) => `${n} best matches · ${ms} ms`,
    truncated: "The text was longer than the model reads; its end was left out.",
    retry: "Try again", yourPicture: "Your picture", likeThis: "Like this one",
    offline: "The service does not answer", offlineText: "It may be restarting, or has stopped.",
    refused: "This could not be searched",
    similar: "More like this", similarCaptions: "Matching captions", close: "Close",
    previous: "Previous", next: "Next", untitled: "Picture", untitledText: "Caption",
    dropAnywhere: "Drop the picture to search for its like",
    dropPicture: "Drop a picture", dropHint: "or paste it, or click to choose",
    labels: "Labels, separated by commas or lines",
    labelsPlaceholder: "beach, mountain, city", probabilities: "Probabilities",
    multiLabel: "Several labels may apply at once",
    labelsNeeded: "Name at least two labels.",
    about: (v, i, c, m) => `Index version ${v} · ${i} pictures · ${c} captions · model ${m}`,
    score: (s) => `cosine ${s}`,
    notPicture: "That is not a picture", notPictureText: "Drop a JPEG, PNG, WebP, GIF, BMP or TIFF file.",
    problems: {}, // the service's own words are English
    facts: { path: "Path", id: "Id", score: "Score", label: "Label", language: "Language" },
    other: "中文", otherCode: "zh",
  },
  zh: {
    views: "视图", search: "搜索", classify: "分类", results: "结果", lookFor: "查找",
    placeholder: "描述一张图片…", choosePicture: "以图搜索", clear: "清除",
    images: "图片", captions: "文字", more: "显示更多", api: "接口文档",
    startTitle: "说出来，或拿出来。",
    startText: "用自己的话描述画面。也可以拖入、粘贴或选择一张图片，查找与它相似的图片。",
    suggestions: ["红色的东西", "一只动物", "盘子里的食物", "微笑的人"],
    noneTitle: "这里还没有内容",
    noPictures: "此索引中没有图片。",
    noCaptions: "此索引中没有文字。请改为搜索图片。",
    found: (n, ms) => `最相近的 ${n} 项 · ${ms} 毫秒`,
    truncated: "文字超出模型可读的长度，末尾已被截去。",
    retry: "重试", yourPicture: "你的图片", likeThis: "与此相似",
    offline: "服务没有响应", offlineText: "可能正在重启，或已停止。",
    refused: "无法搜索",
    similar: "更多相似图片", similarCaptions: "相配的文字", close: "关闭",
    previous: "上一项", next: "下一项", untitled: "图片", untitledText: "文字",
    dropAnywhere: "松开以查找相似图片",
    dropPicture: "拖入一张图片", dropHint: "或粘贴，或点击选择",
    labels: "标签，用逗号或换行分隔",
    labelsPlaceholder: "海滩，山，城市", probabilities: "概率",
    multiLabel: "可同时符合多个标签",
    labelsNeeded: "请至少写两个标签。",
    about: (v, i, c, m) => `索引版本 ${v} · ${i} 张图片 · ${c} 条文字 · 模型 ${m}`,
    score: (s) => `余弦 ${s}`,
    notPicture: "这不是图片", notPictureText: "请拖入 JPEG、PNG、WebP、GIF、BMP 或 TIFF 文件。",
    problems: {
      "image-undecodable": "图片已损坏，或不是图片。",
      "image-empty": "图片是空的。",
      "image-format-not-allowed": "不支持这种图片格式。",
      "image-too-large": "图片文件太大，最多 20 MiB。",
      "image-too-many-pixels": "图片像素太多，最多 5000 万。",
      "image-bad-dimensions": "图片尺寸无法使用。",
      "body-too-large": "上传的内容太大。",
      "invalid-text": "文字无法搜索：为空、过长，或含无效字符。",
      "invalid-labels": "标签须各不相同，且不能为空。",
      "not-found": "找不到这一项，它可能已被移除。",
      "index-error": "索引暂时无法使用。",
      "internal-error": "服务出错了，原因已记入日志。",
      "model-unusable": "模型出错了，原因已记入日志。",
    },
    facts: { path: "路径", id: "标识", score: "得分", label: "标签", language: "语言" },
    other: "English", otherCode: "en",
  },
};

let language = "en";

/** Remembered values are a convenience: a browser may forbid storage. */
export function remembered(key, fallback = "") {
  try {
    return localStorage.getItem(`diptych.${key}`) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(`diptych.${key}`, value);
  } catch {
    // private browsing
  }
}

export const t = (key, ...values) => {
  const word = WORDS[language][key];
  return typeof word === "function" ? word(...values) : word;
};
export const number = (value) => new Intl.NumberFormat(language).format(value);

export function setLanguage(code) {
  language = code in WORDS ? code : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  const attributes = { i18nLabel: "aria-label", i18nPlaceholder: "placeholder", i18nTitle: "title" };
  for (const [key, attribute] of Object.entries(attributes)) {
    const name = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const node of document.querySelectorAll(`[data-${name}]`)) node.setAttribute(attribute, t(node.dataset[key]));
  }
}

export const preferredLanguage = () =>
  remembered("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
