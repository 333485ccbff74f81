//! `/proc`: parsers apart from readers, the fallback source, and the facts about programs that only it tells.
