# dead-man's switch: past the deadline this machine destroys itself
test -s ~/.llm_course_deadline || echo $(($(date +%s) + @LIFETIME_S@)) > ~/.llm_course_deadline
cat > ~/.llm_course_destroy.py <<'END'
import os, urllib.request
headers = {"Authorization": f"Bearer {os.environ['OWN_KEY']}", "Content-Type": "application/json"}
request = urllib.request.Request(os.environ["OWN_URL"], b"{}", headers, method="DELETE")
urllib.request.urlopen(request, timeout=30)
END
(while sleep 5; do
  [ "$(date +%s)" -lt "$(cat ~/.llm_course_deadline)" ] ||
    OWN_URL="@URL@" OWN_KEY="@KEY@" python3 ~/.llm_course_destroy.py
done) > ~/deadman.log 2>&1 &
