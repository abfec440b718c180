-- Documents by their words. A text counts with its first 100,000 letters: Postgres keeps no more than 1 MB of words.
create function document_words(text text) returns tsvector language sql immutable parallel safe
    return to_tsvector('english', left(text, 100000));
-- Any of the words, where plainto_tsquery wants all of them.
create function any_word(query text) returns tsquery language sql immutable parallel safe
    return replace(plainto_tsquery('english', query)::text, ' & ', ' | ')::tsquery;
