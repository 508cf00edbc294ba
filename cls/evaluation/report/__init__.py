"""The report page: ``sections`` are its values, ``thumbnails`` and ``neighbors`` its photos, ``build`` the page."""
