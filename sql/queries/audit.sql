-- name: list_operations
select op_id, at, actor, action, event_id, detail from operations
where tenant = $1
  and ($2::timestamptz is null or at >= $2)
  and ($3::timestamptz is null or at < $3)
  and ($4::text is null or actor = $4)
  and ($5::text is null or action = $5)
  and ($6::uuid is null or (at, op_id) < (select o.at, o.op_id from operations o where o.op_id = $6 and o.tenant = $1))
order by at desc, op_id desc
limit $7;
