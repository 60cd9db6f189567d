// Refusals and failures, said kindly and in the reader's language.

import { ServiceError } from "./api.js";
import { element } from "./dom.js";
import { t } from "./i18n.js";

export function notice(box, error, retry) {
  const known = error instanceof ServiceError;
  const own = known ? t("problems")[error.code] : undefined;
  let title = (known && error.title) || t("refused");
  let text = error.message;
  if (own) [title, text] = [t("refused"), own];
  if (known && error.offline) [title, text] = [t("offline"), t("offlineText")];
  box.hidden = false;
  // what was refused once is refused again
  const again = retry && !(known && error.refused);
  box.replaceChildren(
    element("strong", { text: title }),
    element("span", { text }),
    ...(again ? [element("button", { type: "button", className: "soft", text: t("retry"), on: { click: retry } })] : []),
  );
}

export const notPicture = () => new ServiceError({ title: t("notPicture"), detail: t("notPictureText"), status: 415 });
