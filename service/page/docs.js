"use strict";

// a file of its own, because the content security policy allows no inline script
window.ui = window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // the default asks a validator on the internet
  validatorUrl: null,
});
