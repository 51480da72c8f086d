@echo off
rem Finds a suitable Python (3.11 to 3.13) and runs core\setup\launch.py with all arguments. See "launch.bat help".
rem Needs no administrator rights, activation, execution policy or Git. 3.11 first, as in launch.sh.
rem Paths may contain spaces and brackets: each is quoted, and none is in a bracketed block, which cmd would expand at once.
setlocal EnableExtensions DisableDelayedExpansion
chcp 65001 >nul 2>&1
set "PYTHONUTF8=1"
rem Of another program: its packages would be imported instead of Atelier's.
set "PYTHONHOME="
set "PYTHONPATH="
rem The Python install manager would download a missing version.
set "PYTHON_MANAGER_AUTOMATIC_INSTALL=false"
set "answer=%TEMP%\atelier_%RANDOM%.txt"
set "list=%TEMP%\atelier_%RANDOM%_list.txt"
set "python="
set "flag="
set "found="
set "stub="
set "code=1"

if not defined ATELIER_PYTHON goto look
set "python=%ATELIER_PYTHON%"
goto run

:look
rem First the Python that .venv was made with: another one would install everything again.
if exist "%~dp0.venv\pyvenv.cfg" for /f "usebackq tokens=1,* delims== " %%a in ("%~dp0.venv\pyvenv.cfg") do if /i "%%a"=="home" call :ask_file "%%b\python.exe"
rem The py launcher finds Pythons that are installed but not on PATH.
for %%v in (3.11 3.12 3.13) do call :ask_py %%v
for %%v in (311 312 313) do call :ask_file "%LOCALAPPDATA%\Programs\Python\Python%%v\python.exe"
for %%v in (311 312 313) do call :ask_file "%ProgramFiles%\Python%%v\python.exe"
where python python3 >"%list%" 2>nul
for /f "usebackq delims=" %%p in ("%list%") do call :ask_file "%%p"
for %%f in (miniconda3 anaconda3 miniforge3 mambaforge) do call :ask_file "%USERPROFILE%\%%f\python.exe"
del "%answer%" "%list%" >nul 2>&1
if defined python goto run
if defined found goto wrong
if defined stub goto store
echo Atelier needs Python 3.11, 3.12 or 3.13 but found none: install Python 3.11 (64-bit) from python.org, then start launch.bat again.
goto end

:wrong
echo Atelier needs Python 3.11, 3.12 or 3.13 (64-bit) but found only%found%: install Python 3.11 from python.org, then start launch.bat again.
goto end

:store
echo Atelier needs Python, but python on this Windows is only a link to the Microsoft Store: install Python 3.11 from python.org, then start launch.bat again.
goto end

:run
"%python%" %flag% "%~dp0core\setup\launch.py" %*
set "code=%ERRORLEVEL%"

:end
rem After a double click the window would close before the message can be read. Windows then passes this file's full path in quotes
rem without arguments; when typed in a console, no pause is needed.
if "%code%"=="0" exit /b 0
if defined CI exit /b %code%
if not "%~1"=="" exit /b %code%
if /i %0=="%~f0" pause
exit /b %code%

:ask_py
if defined python exit /b 0
py -%1 "%~dp0core\setup\probe.py" >"%answer%" 2>nul
call :judge
if not "%fit%"=="ok" exit /b 0
set "python=py"
set "flag=-%1"
exit /b 0

:ask_file
if defined python exit /b 0
if not exist "%~1" exit /b 0
"%~1" "%~dp0core\setup\probe.py" >"%answer%" 2>nul
call :judge
if "%fit%"=="ok" set "python=%~1"
if defined fit exit /b 0
rem The Store's stub prints nothing; a Python installed from the Store prints like any other.
set "place=%~1"
if /i not "%place:\WindowsApps\=%"=="%place%" set "stub=1"
exit /b 0

:judge
set "version="
set "fit="
for /f "usebackq tokens=1 delims=|" %%a in ("%answer%") do set "version=%%a"
for /f "usebackq tokens=2 delims=|" %%a in ("%answer%") do set "fit=%%a"
if not defined fit exit /b 0
if "%fit%"=="ok" exit /b 0
if defined found set "found=%found%,"
set "found=%found% %version%"
if not "%fit%"=="old" if not "%fit%"=="new" set "found=%found% (%fit%)"
exit /b 0
