window.atelier = {};
